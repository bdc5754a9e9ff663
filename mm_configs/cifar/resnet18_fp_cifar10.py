_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    '../_base_/cifar10.py',
    '../_base_/cifar_200e.py',
]
