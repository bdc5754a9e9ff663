_base_ = [
    '../_base_/mobilenet_v2_cifar.py',
    '../_base_/cifar10.py',
    '../_base_/cifar_200e.py',
]
