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
from .routed import measured_routed
from .weighted_layers import weighted_layers


@dataclass(frozen=True)
class NoiseGradientNorm:
    """L2 norms of the mean task loss's gradient in the latent weights.

    Attributes:
        clean (float): Without noise.
        feature (Estimate): With noise on every layer's input.
        weight (Estimate): With noise on every layer's weight.
        clean_loss (float): The task loss without noise.
        feature_loss (Estimate): The same with noise on the inputs.
        weight_loss (Estimate): The same with noise on the weights.
    """

    clean: float
    feature: Estimate
    weight: Estimate
    clean_loss: float
    feature_loss: Estimate
    weight_loss: Estimate


@measured_routed
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

        def values(context) -> Tensor:
            with context:
                found = _gradient_norm_and_loss(model, batches, weights)
            bar.step()
            return found

        clean = values(nullcontext()).tolist()
        feature = torch.stack([
            values(noisy_features(found, of_features)) for _ in range(draws)
        ]).T
        weight = torch.stack([
            values(noisy_weights(found, of_weights)) for _ in range(draws)
        ]).T
    bar.end()
    return NoiseGradientNorm(clean[0], Estimate.of(feature[0]),
                             Estimate.of(weight[0]), clean[1],
                             Estimate.of(feature[1]), Estimate.of(weight[1]))


def _gradient_norm_and_loss(model: nn.Module, batches: Sequence[Batch],
                            weights: list[nn.Parameter]) -> Tensor:
    total, mean = [torch.zeros_like(w) for w in weights], 0.0
    for batch, share in zip(batches, shares(batches)):
        loss = batch.loss(model)
        mean += share * float(loss)
        if not loss.requires_grad:
            continue
        gradients = torch.autograd.grad(
            loss, weights, allow_unused=True, materialize_grads=True)
        for sum_, gradient in zip(total, gradients):
            sum_.add_(gradient, alpha=share)
    norm = torch.stack([g.norm() for g in total]).norm()
    return torch.tensor([float(norm), mean], dtype=torch.float64)
