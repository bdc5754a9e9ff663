_base_ = [
    '../_base_/mobilenet_v1_cifar.py',
    '../_base_/cifar100.py',
    '../_base_/cifar_200e.py',
]

model = dict(head=dict(num_classes=100))
# Not for training: lets torch >= 2.6 read mmengine's checkpoints in mim test.
custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)
