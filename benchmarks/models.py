"""The models that the benchmarks run, with batch size and image size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

CLASSES = 100


class _Classifier(nn.Module):
    """A backbone of mmpretrain with a linear head."""

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def _resnet_cifar(depth: int) -> Callable[[], nn.Module]:

    def build() -> nn.Module:
        from mmpretrain.models import ResNet_CIFAR
        return _Classifier(ResNet_CIFAR(depth), 512 if depth < 50 else 2048)

    return build


def _torchvision(name: str) -> Callable[[], nn.Module]:

    def build() -> nn.Module:
        import torchvision
        return getattr(torchvision.models, name)(num_classes=CLASSES)

    return build


def _vit_small() -> nn.Module:
    from mmpretrain.models import VisionTransformer

    class TokenClassifier(_Classifier):

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x)[-1])

    return TokenClassifier(VisionTransformer('deit-small', img_size=224), 384)


MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    'resnet18-32': (_resnet_cifar(18), 32, 32),
    'resnet34-32': (_resnet_cifar(34), 32, 32),
    'resnet50-32': (_resnet_cifar(50), 32, 32),
    'resnet101-32': (_resnet_cifar(101), 32, 32),
    'mobilenet_v2-112': (_torchvision('mobilenet_v2'), 8, 112),
    'resnet18-224': (_torchvision('resnet18'), 8, 224),
    'resnet50-224': (_torchvision('resnet50'), 8, 224),
    'vit-small-224': (_vit_small, 8, 224),
}
"""Name to (constructor, batch size, pixels)."""


ZOO = {
    'resnet18': ('ResNet-18', 'resnet18_8xb32_in1k'),
    'resnet50': ('ResNet-50', 'resnet50_8xb32_in1k'),
    'mobilenet_v2': ('MobileNetV2', 'mobilenet-v2_8xb32_in1k'),
    'mobilenet_v3': ('MobileNetV3-large', 'mobilenet-v3-large_8xb128_in1k'),
    'shufflenet_v2': ('ShuffleNetV2 1.0x', 'shufflenet-v2-1x_16xb64_in1k'),
    'efficientnet_b0': ('EfficientNet-B0',
                        'efficientnet-b0_3rdparty_8xb32_in1k'),
    'vit_small': ('ViT-small', 'deit-small_4xb256_in1k'),
    'swin_tiny': ('Swin-tiny', 'swin-tiny_16xb64_in1k'),
}
"""mmpretrain's ImageNet classifiers: title, and the zoo's name."""


def zoo_model(name: str, images: Tensor) -> nn.Module:
    """A classifier of the zoo with random weights, in eval mode.

    Its batch norms have the statistics of ``images``. With the initial ones
    the features of random weights vanish or explode.

    Args:
        name (str): Key of :data:`ZOO`.
        images (Tensor): Of shape (N, 3, H, W).

    Returns:
        nn.Module: From images to logits of 1,000 classes.
    """
    from mmpretrain import get_model

    torch.manual_seed(0)
    model = get_model(ZOO[name][1], pretrained=False).eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for batch in images.split(4):
            model(batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()
    return model


def build(name: str, device: str, batch: int | None = None,
          pixels: int | None = None) -> tuple[nn.Module, Tensor, Tensor]:
    """A model with random weights and a batch for it.

    Args:
        name (str): Key of :data:`MODELS`.
        device (str): Where model and batch live.
        batch (int, optional): Number of images instead of the model's own.
        pixels (int, optional): Their height and width, likewise.

    Returns:
        tuple: The model, images (N, 3, H, W) and labels (N,).
    """
    torch.manual_seed(0)
    constructor, own_batch, own_pixels = MODELS[name]
    batch, pixels = batch or own_batch, pixels or own_pixels
    x = torch.randn(batch, 3, pixels, pixels, device=device)
    y = torch.randint(0, CLASSES, (batch, ), device=device)
    return constructor().to(device), x, y
