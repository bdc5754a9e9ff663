_base_ = [
    '../_base_/mobilenet_v1_cifar.py',
    '../_base_/cifar100.py',
    '../_base_/cifar_200e.py',
    '../_base_/fpq_w4a4.py',
]

model = dict(head=dict(num_classes=100))
default_hooks = dict(fpq=_base_.fpq)
load_from = (
    '{{$FPQ_WORK_DIRS:work_dirs}}/mobilenet_v1_fp_cifar100/epoch_200.pth')
