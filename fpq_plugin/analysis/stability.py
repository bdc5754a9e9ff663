"""Stability: the loss's gradient and the output under noise.

Figs. 1 and 2 of arXiv 2503.11159 at one point of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batches import Batch, image_shares
from .measuring import (
    Estimate,
    ProgressBar,
    attention_as_layers,
    left_unchanged,
    weighted_layers,
)
from .noise import feature_steps, noisy_features, noisy_weights, weight_steps

SIGMAS = (0.05, 0.1, 0.2, 0.4)
"""Standard deviations of Fig. 1, in units of the preprocessed input."""


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


@dataclass(frozen=True)
class OutputVariance:
    """Variance of the output over draws of input noise, as in Fig. 1.

    Attributes:
        sigmas (tuple): Standard deviations of the noise, in units of the
            preprocessed input.
        variances (tuple[Estimate]): Variance over draws, mean over outputs
            and images; the error is over images.
        clean (float): Variance of the noiseless output over images, mean
            over outputs: the scale to see the others on.
    """

    sigmas: tuple[float, ...]
    variances: tuple[Estimate, ...]
    clean: float


@attention_as_layers
def noise_gradient_norm(model: nn.Module,
                        batches: Sequence[Batch],
                        draws: int = 8,
                        layers: Sequence[str] | None = None,
                        seed: int = 0,
                        progress: bool = False) -> NoiseGradientNorm:
    """The gradient's norm with and without noise, as in Fig. 2.

    The noise is elementwise uniform in one quantization step of the layer's
    input, or of its weight, in all layers at once. A float layer's step is
    that of 4 bits.

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
    with left_unchanged(model, seed, weights), ProgressBar(
            'gradient norm under noise', 2 * draws + 1, 'gradients',
            progress) as bar:
        of_features = feature_steps(model, found, batches)
        of_weights = weight_steps(found)

        def measure(noise: AbstractContextManager) -> Tensor:
            with noise:
                values = _gradient_norm_and_loss(model, batches, weights)
            bar.step()
            return values

        clean = measure(nullcontext()).tolist()
        feature = torch.stack([
            measure(noisy_features(found, of_features)) for _ in range(draws)
        ]).T
        weight = torch.stack([
            measure(noisy_weights(found, of_weights)) for _ in range(draws)
        ]).T
    return NoiseGradientNorm(
        clean=clean[0],
        feature=Estimate.from_samples(feature[0]),
        weight=Estimate.from_samples(weight[0]),
        clean_loss=clean[1],
        feature_loss=Estimate.from_samples(feature[1]),
        weight_loss=Estimate.from_samples(weight[1]))


def output_variance(model: nn.Module,
                    batches: Sequence[Batch],
                    sigmas: Sequence[float] = SIGMAS,
                    draws: int = 8,
                    seed: int = 0,
                    progress: bool = False) -> OutputVariance:
    """Measure the output's variance under Gaussian input noise.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        sigmas (Sequence[float]): Standard deviations of the noise. Defaults
            to 0.05, 0.1, 0.2 and 0.4.
        draws (int): Draws per image and sigma, at least 2. Defaults to 8.
        seed (int): Seed of the noise. Defaults to 0.
        progress (bool): Whether to show a bar. Defaults to False.

    Returns:
        OutputVariance: In units of the output squared.
    """
    variances = []
    with left_unchanged(model, seed), ProgressBar(
            'output variance under input noise', len(sigmas) * len(batches),
            'batches', progress) as bar:
        clean = torch.cat([batch.output(model) for batch in batches])
        for sigma in sigmas:
            by_image = []
            for batch in batches:
                x = batch.inputs
                outputs = torch.stack([
                    batch.output(model, x + sigma * torch.randn_like(x))
                    for _ in range(draws)
                ])
                by_image.append(outputs.double().var(0).mean(1))
                bar.step()
            variances.append(
                Estimate.from_samples(torch.cat(by_image).cpu()))
    return OutputVariance(
        tuple(sigmas), tuple(variances),
        float(clean.double().var(0).mean()))


def _gradient_norm_and_loss(model: nn.Module, batches: Sequence[Batch],
                            weights: list[nn.Parameter]) -> Tensor:
    """Both in one tensor, (2, ), of the mean task loss over all images."""
    total, mean = [torch.zeros_like(w) for w in weights], 0.0
    for batch, share in zip(batches, image_shares(batches)):
        loss = batch.loss(model)
        mean += share * float(loss.detach())
        if not loss.requires_grad:
            continue
        gradients = torch.autograd.grad(
            loss, weights, allow_unused=True, materialize_grads=True)
        for sum_, gradient in zip(total, gradients):
            sum_.add_(gradient, alpha=share)
    norm = torch.stack([g.norm() for g in total]).norm()
    return torch.tensor([float(norm), mean], dtype=torch.float64)
