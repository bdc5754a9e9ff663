_base_ = [
    'mmpretrain::_base_/models/resnet50_cifar.py',
    '../_base_/cifar100.py',
    '../_base_/cifar_200e.py',
]

model = dict(head=dict(num_classes=100))
