"""The name by which configs import the recipes' backbones."""

from .openmmlab.backbones import MobileNetV1_CIFAR, MobileNetV2_CIFAR

__all__ = ['MobileNetV1_CIFAR', 'MobileNetV2_CIFAR']
