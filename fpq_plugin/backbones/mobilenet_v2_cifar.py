"""MobileNetV2 for 32 x 32 images."""

from mmpretrain.models.backbones import MobileNetV2
from mmpretrain.registry import MODELS
from torch import nn


@MODELS.register_module()
class MobileNetV2_CIFAR(MobileNetV2):
    """MobileNetV2 whose stem and second stage have stride 1.

    The total stride is 8 instead of 32, so 32 x 32 images end in 4 x 4 maps.
    Takes the arguments of mmpretrain's ``MobileNetV2`` and:

    Args:
        in_channels (int): Channels of the images. Defaults to 3.
        stem_stride (int): Stride of the stem. Defaults to 1.
    """

    # Parameters to build layers: expansion, channels, blocks, stride.
    arch_settings = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2],
                     [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2],
                     [6, 320, 1, 1]]

    def __init__(self,
                 *args,
                 in_channels: int = 3,
                 stem_stride: int = 1,
                 **kwargs) -> None:
        super().__init__(*args, **kwargs)
        stem = self.conv1.conv
        self.conv1.conv = nn.Conv2d(
            in_channels,
            stem.out_channels,
            3,
            stride=stem_stride,
            padding=1,
            bias=False)
