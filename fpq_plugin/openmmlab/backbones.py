"""Backbones of the recipes that mmpretrain lacks; needs mmpretrain."""

from __future__ import annotations

from mmcv.cnn import ConvModule
from mmpretrain.models.backbones import MobileNetV2
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class MobileNetV1_CIFAR(BaseBackbone):
    """MobileNetV1 (Howard et al., arXiv 1704.04861) with a stem of stride 1.

    Thirteen pairs of a depthwise 3 x 3 and a pointwise convolution, each with
    batch norm and ReLU. The total stride is 16, so 32 x 32 images end in 2 x
    2 maps of ``1024 * widen_factor`` channels.

    Args:
        widen_factor (float): Factor on all channels. Defaults to 1.0.
        in_channels (int): Channels of the images. Defaults to 3.
        init_cfg (dict | list[dict], optional): Initialization. Defaults to
            None: that of the layers.
    """

    # Output channels and stride of each pair.
    arch_settings = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1),
                     (512, 2), (512, 1), (512, 1), (512, 1), (512, 1),
                     (512, 1), (1024, 2), (1024, 1)]

    def __init__(self,
                 widen_factor: float = 1.0,
                 in_channels: int = 3,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        norm = dict(norm_cfg=dict(type='BN'))
        channels = int(32 * widen_factor)
        self.stem = ConvModule(in_channels, channels, 3, padding=1, **norm)
        pairs = []
        for out_channels, stride in self.arch_settings:
            out_channels = int(out_channels * widen_factor)
            pairs.append(
                nn.Sequential(
                    ConvModule(
                        channels, channels, 3, stride=stride, padding=1,
                        groups=channels, **norm),
                    ConvModule(channels, out_channels, 1, **norm)))
            channels = out_channels
        self.pairs = nn.Sequential(*pairs)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """From images (N, C, H, W) to the last maps."""
        return (self.pairs(self.stem(x)), )


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
