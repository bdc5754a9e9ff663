"""MobileNetV2 for 32 x 32 images."""

from mmpretrain.models.backbones import MobileNetV2
from mmpretrain.registry import MODELS


@MODELS.register_module()
class MobileNetV2_CIFAR(MobileNetV2):
    """MobileNetV2 whose stem and second stage have stride 1.

    The total stride is 8 instead of 32, so 32 x 32 images end in 4 x 4 maps.
    Takes the arguments of mmpretrain's ``MobileNetV2``.
    """

    # Parameters to build layers: expansion, channels, blocks, stride.
    arch_settings = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2],
                     [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2],
                     [6, 320, 1, 1]]

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.conv.stride = (1, 1)
