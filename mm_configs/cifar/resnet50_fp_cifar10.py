_base_ = [
    'mmpretrain::_base_/models/resnet50_cifar.py',
    '../_base_/cifar10.py',
    '../_base_/cifar_200e.py',
]
