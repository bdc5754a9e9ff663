# ResNet of three stages and width 8 (46 k parameters): one core trains it.
_base_ = ['./resnet_fashion_mnist.py']

model = dict(
    backbone=dict(stem_channels=8, base_channels=8),
    head=dict(in_channels=32))
