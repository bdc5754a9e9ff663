"""Backbones of the recipes that mmpretrain lacks; needs mmpretrain."""

from .mobilenet_v1_cifar import MobileNetV1_CIFAR
from .mobilenet_v2_cifar import MobileNetV2_CIFAR

__all__ = ['MobileNetV1_CIFAR', 'MobileNetV2_CIFAR']
