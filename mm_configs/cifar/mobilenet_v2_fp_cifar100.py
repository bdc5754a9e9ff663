_base_ = [
    '../_base_/mobilenet_v2_cifar.py',
    '../_base_/cifar100.py',
    '../_base_/cifar_200e.py',
]

model = dict(head=dict(num_classes=100))
