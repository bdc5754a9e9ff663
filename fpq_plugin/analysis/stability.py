"""Stability: the loss's gradient and the output under noise, and that noise.

Figs. 1 and 2 of arXiv 2503.11159 at one point of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch, image_shares
from .measuring import (
    Estimate,
    ProgressBar,
    attention_as_layers,
    hook_removed,
    layer_kind,
    left_unchanged,
    values_restored,
    weighted_layers,
)

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


# -- noise of one quantization step ---------------------------------------
#
# What FPQ trains with: stochastic feature perturbation, equation (9), and its
# counterpart on weights. A float layer's noise has the step that 4 bits would
# give it by equation (4).

FLOAT_BITS = 4
"""Bits whose step a float layer's noise has."""


def feature_steps(model: nn.Module, layers: Mapping[str, nn.Module],
                  batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The activation step of each layer, in units of its input.

    Of a float input it is that of equation (4) at 4 bits, from the range
    over ``batches``; of a Brevitas tensor that comes quantized, its own.

    Args:
        model (nn.Module): The model, in eval mode.
        layers (Mapping[str, nn.Module]): Its layers by name.
        batches (Iterable[Batch]): The data.

    Returns:
        dict[str, Tensor]: Scalars by layer name; a float layer that the model
        does not call has none.
    """
    steps: dict[str, Any] = {}
    ranges: dict[str, list[tuple[Tensor, ...]]] = {}
    unknown = False
    with ExitStack() as stack:
        for name, layer in layers.items():
            quantizer = _quantizer(layer, 'input_quantizer')
            if quantizer is not None:
                steps[name] = quantizer.step()
                continue
            unknown = True
            stack.enter_context(
                hook_removed(
                    layer.register_forward_pre_hook(
                        _record_range(name, steps, ranges))))
        if unknown:
            with torch.no_grad():
                for batch in batches:
                    batch.output(model)
    for name, seen in ranges.items():
        low, high = (torch.stack(v) for v in zip(*seen))
        steps[name] = (high.max() - low.min()) / (2**FLOAT_BITS - 1)
    return steps


def weight_steps(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weight step of each layer, shaped to broadcast to the weight.

    Of a float weight it is that of equation (4) at 4 bits, symmetric and per
    output channel.

    Args:
        layers (Mapping[str, nn.Module]): The layers by name.

    Returns:
        dict[str, Tensor]: By layer name.
    """
    steps = {}
    for name, layer in layers.items():
        weight = layer.weight.detach()
        axis = layer_kind(layer, name).weight_axis
        quantizer = _quantizer(layer, 'weight_quantizer')
        if quantizer is None:
            step = (2 * weight.abs().movedim(axis, 0).flatten(1).amax(1) /
                    (2**FLOAT_BITS - 1))
        else:
            step = quantizer.step()
        shape = [1] * weight.dim()
        shape[axis] = -1
        steps[name] = step.view(shape)
    return steps


@contextmanager
def noisy_features(layers: Mapping[str, nn.Module],
                   steps: Mapping[str, Tensor]) -> Iterator[None]:
    """Add noise in ``[-s/2, s/2]`` to what enters each layer's operation.

    That is after the input's fake quantizer, where equation (9) puts it.

    Args:
        layers (Mapping[str, nn.Module]): The layers by name.
        steps (Mapping[str, Tensor]): Those of :func:`feature_steps`; a layer
            without one has no noise.
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            if name not in steps:
                continue
            quantizer = _quantizer(layer, 'input_quantizer')
            handle = (
                layer.register_forward_pre_hook(_add_to_input(steps[name]))
                if quantizer is None else quantizer.register_forward_hook(
                    _add_to_output(steps[name])))
            stack.enter_context(hook_removed(handle))
        yield


@contextmanager
def noisy_weights(layers: Mapping[str, nn.Module],
                  steps: Mapping[str, Tensor]) -> Iterator[None]:
    """Add noise in ``[-s/2, s/2]`` to each layer's weight.

    That is after the weight's fake quantizer; the latent weight of a float
    layer is changed in place and given back.

    Args:
        layers (Mapping[str, nn.Module]): The layers by name.
        steps (Mapping[str, Tensor]): Those of :func:`weight_steps`.
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            quantizer = _quantizer(layer, 'weight_quantizer')
            if quantizer is None:
                stack.enter_context(values_restored([layer.weight]))
                noise = _uniform_noise(layer.weight.detach(), steps[name])
                layer.weight.data.add_(noise)
            else:
                stack.enter_context(
                    hook_removed(
                        quantizer.register_forward_hook(
                            _add_to_output(steps[name]))))
        yield


def _quantizer(layer: nn.Module, name: str) -> nn.Module | None:
    return getattr(layer, name, None)


def _uniform_noise(like: Tensor, step: Tensor) -> Tensor:
    return (torch.rand_like(like) - 0.5) * step


def _add_to_output(step: Tensor) -> Callable:

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output + _uniform_noise(output, step)

    return hook


def _add_to_input(step: Tensor) -> Callable:

    def hook(module: nn.Module, args: tuple) -> tuple:
        x = getattr(args[0], 'value', args[0])
        return (x + _uniform_noise(x, step), *args[1:])

    return hook


def _record_range(name: str, steps: dict[str, Tensor],
                  ranges: dict[str, list[tuple[Tensor, ...]]]) -> Callable:

    def hook(module: nn.Module, args: tuple) -> None:
        x = args[0]
        if getattr(x, 'scale', None) is not None:
            steps[name] = x.scale.detach()
        else:
            ranges.setdefault(name, []).append(tuple(x.detach().aminmax()))

    return hook
