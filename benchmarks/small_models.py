"""Twelve small classifiers of unlike kinds, for images of 28 x 28 pixels."""

from __future__ import annotations

from collections.abc import Callable

from mmpretrain.registry import MODELS
from torch import Tensor, nn

CLASSES = 10


class _Classifier(nn.Module):
    """A backbone and a linear head on the mean over space."""

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = self.backbone(x)
        if isinstance(out, tuple):
            out = out[-1]
        return self.head(out.flatten(2).mean(2) if out.dim() > 2 else out)


def _plain() -> nn.Module:
    """Convolution, batch norm, ReLU; no shortcut."""
    widths, layers = (1, 16, 32, 48, 64), []
    for number, (narrow, wide) in enumerate(zip(widths, widths[1:])):
        layers += [
            nn.Conv2d(narrow, wide, 3, 1 + (number > 0), 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU()
        ]
    return _Classifier(nn.Sequential(*layers), widths[-1])


def _of_zoo(features: int, **backbone: object) -> Callable[[], nn.Module]:

    def build() -> nn.Module:
        return _Classifier(MODELS.build(dict(backbone)), features)

    return build


SMALL: dict[str, tuple[Callable[[], nn.Module], float]] = {
    'plain': (_plain, 0.05),
    'resnet': (_of_zoo(
        64, type='ResNet_CIFAR', depth=18, in_channels=1, stem_channels=8,
        base_channels=8), 0.05),
    'mobilenet_v2': (_of_zoo(
        1280, type='MobileNetV2', widen_factor=0.25), 0.05),
    'mobilenet_v3': (_of_zoo(
        576, type='MobileNetV3', arch='small',
        norm_cfg=dict(type='BN', eps=1e-3, momentum=0.1)), 0.05),
    'shufflenet_v2': (_of_zoo(
        1024, type='ShuffleNetV2', widen_factor=0.5), 0.05),
    'repvgg': (_of_zoo(
        128, type='RepVGG', in_channels=1, base_channels=16, arch=dict(
            num_blocks=[1, 1, 1, 1], width_factor=[1, 1, 1, 1],
            group_layer_map=None, se_cfg=None)), 0.05),
    'densenet': (_of_zoo(
        40, type='DenseNet', in_channels=1, arch=dict(
            growth_rate=8, depths=[2, 2, 3], init_channels=16)), 0.05),
    'convnext': (_of_zoo(
        64, type='ConvNeXt', in_channels=1, stem_patch_size=2, arch=dict(
            depths=[1, 1, 2, 1], channels=[16, 32, 48, 64])), 0.02),
    'mixer': (_of_zoo(
        48, type='MlpMixer', img_size=28, patch_size=4, arch=dict(
            embed_dims=48, num_layers=3, tokens_mlp_dims=32,
            channels_mlp_dims=96)), 0.02),
    'vit': (_of_zoo(
        48, type='VisionTransformer', img_size=28, patch_size=4, arch=dict(
            embed_dims=48, num_layers=3, num_heads=3,
            feedforward_channels=96)), 0.02),
    'swin': (_of_zoo(
        48, type='SwinTransformer', img_size=28, patch_size=2, window_size=7,
        arch=dict(embed_dims=24, depths=[1, 2], num_heads=[2, 3]),
        out_indices=(1, )), 0.02),
    'poolformer': (_of_zoo(
        64, type='PoolFormer', in_patch_size=3, in_stride=2, in_pad=1,
        arch=dict(layers=[1, 1, 2, 1], embed_dims=[16, 32, 48, 64],
                  mlp_ratios=[2, 2, 2, 2],
                  layer_scale_init_value=1e-1)), 0.02),
}
"""Name to (constructor, the rate of SGD with momentum that trains it)."""

CHANNELS = {'mobilenet_v2', 'mobilenet_v3', 'shufflenet_v2', 'mixer', 'vit',
            'swin', 'poolformer'}
"""Those that take images of three channels."""
