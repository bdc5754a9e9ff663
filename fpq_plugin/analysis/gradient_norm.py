"""The loss gradient's norm under feature noise and under weight noise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch, shares
from .estimate import Estimate
from .noise import (
    feature_steps,
    noisy_features,
    noisy_weights,
    weight_steps,
)
from .progress import Progress
from .quiet import quiet
from .weighted_layers import weighted_layers


@dataclass(frozen=True)
class NoiseGradientNorm:
    """L2 norms of the mean task loss's gradient in the latent weights.

    Attributes:
        clean (float): Without noise.
        feature (Estimate): With noise on every layer's input.
        weight (Estimate): With noise on every layer's weight.
    """

    clean: float
    feature: Estimate
    weight: Estimate


def noise_gradient_norm(model: nn.Module,
                        batches: Sequence[Batch],
                        draws: int = 8,
                        layers: Sequence[str] | None = None,
                        seed: int = 0,
                        progress: bool = False) -> NoiseGradientNorm:
    """What the paper's Fig. 2 compares at one point of training.

    The noise is elementwise uniform in one quantization step of the layer's
    input, or of its weight, in all layers at once; see
    :mod:`fpq_plugin.analysis.noise` for float layers.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        draws (int): Draws of the noise. Defaults to 8.
        layers (Sequence[str], optional): Name patterns of the noisy layers.
            Defaults to None, all that can be quantized.
        seed (int): Seed of the noise. Defaults to 0.
        progress (bool): Whether to show a bar. Defaults to False.

    Returns:
        NoiseGradientNorm: In units of the loss over the weights'.

    Raises:
        ValueError: If a pattern matches no layer.
    """
    found = weighted_layers(model, layers)
    weights = [layer.weight for layer in found.values()]
    bar = Progress('gradient norm under noise', 2 * draws + 1, progress)
    with quiet(model, seed, weights):
        of_features = feature_steps(model, found, batches)
        of_weights = weight_steps(found)

        def norm(context) -> Tensor:
            with context:
                value = _gradient_norm(model, batches, weights)
            bar.step()
            return value

        clean = float(norm(nullcontext()))
        feature = Estimate.of(
            torch.stack([
                norm(noisy_features(found, of_features))
                for _ in range(draws)
            ]))
        weight = Estimate.of(
            torch.stack([
                norm(noisy_weights(found, of_weights)) for _ in range(draws)
            ]))
    bar.end()
    return NoiseGradientNorm(clean, feature, weight)


def _gradient_norm(model: nn.Module, batches: Sequence[Batch],
                   weights: list[nn.Parameter]) -> Tensor:
    total = [torch.zeros_like(w) for w in weights]
    for batch, share in zip(batches, shares(batches)):
        gradients = torch.autograd.grad(batch.loss(model), weights)
        for sum_, gradient in zip(total, gradients):
            sum_.add_(gradient, alpha=share)
    return torch.stack([g.norm() for g in total]).norm().detach().cpu()
