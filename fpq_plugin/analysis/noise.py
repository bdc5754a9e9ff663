"""Stability under noise: of the loss's gradient, and of the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .batches import Batch, shares
from .measuring import (
    Estimate,
    Progress,
    layer_kind,
    measured_routed,
    quiet,
    weighted_layers,
)

FLOAT_BITS = 4
"""Bits whose step a float layer's noise has."""


def feature_steps(model: nn.Module, layers: Mapping[str, nn.Module],
                  batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The activation step of each layer, in units of its input.

    Of a float input it is that of equation (4) at 4 bits, from the range
    over ``batches``; of a Brevitas tensor that comes quantized, its own.
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
                removing(
                    layer.register_forward_pre_hook(
                        _watch(name, steps, ranges))))
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

    That is after the input's fake quantizer, where SFP puts it (9).
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            if name not in steps:
                continue
            quantizer = _quantizer(layer, 'input_quantizer')
            handle = (
                layer.register_forward_pre_hook(_on_input(steps[name]))
                if quantizer is None else quantizer.register_forward_hook(
                    _on_output(steps[name])))
            stack.enter_context(removing(handle))
        yield


@contextmanager
def noisy_weights(layers: Mapping[str, nn.Module],
                  steps: Mapping[str, Tensor]) -> Iterator[None]:
    """Add noise in ``[-s/2, s/2]`` to each layer's weight.

    That is after the weight's fake quantizer; the latent weight of a float
    layer is changed in place and given back.
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            quantizer = _quantizer(layer, 'weight_quantizer')
            stack.enter_context(
                _moved(layer.weight, steps[name]) if quantizer is None else
                removing(
                    quantizer.register_forward_hook(_on_output(
                        steps[name]))))
        yield


def _quantizer(layer: nn.Module, part: str) -> nn.Module | None:
    return getattr(layer, part, None)


def _noise(x: Tensor, step: Tensor) -> Tensor:
    return (torch.rand_like(x) - 0.5) * step


def _on_output(step: Tensor):

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output + _noise(output, step)

    return hook


def _on_input(step: Tensor):

    def hook(module: nn.Module, args: tuple) -> tuple:
        x = getattr(args[0], 'value', args[0])
        return (x + _noise(x, step), *args[1:])

    return hook


def _watch(name: str, steps: dict[str, Tensor],
           ranges: dict[str, list[tuple[Tensor, ...]]]):

    def hook(module: nn.Module, args: tuple) -> None:
        x = args[0]
        if getattr(x, 'scale', None) is not None:
            steps[name] = x.scale.detach()
        else:
            ranges.setdefault(name, []).append(tuple(x.detach().aminmax()))

    return hook


@contextmanager
def _moved(weight: nn.Parameter, step: Tensor) -> Iterator[Any]:
    kept = weight.detach().clone()
    weight.data.add_(_noise(kept, step))
    try:
        yield
    finally:
        weight.data.copy_(kept)


@contextmanager
def removing(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


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


SIGMAS = (0.05, 0.1, 0.2, 0.4)


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
    bar = Progress('output variance under input noise',
                   len(sigmas) * len(batches), progress)
    variances = []
    with quiet(model, seed):
        clean = torch.cat([batch.output(model) for batch in batches])
        for sigma in sigmas:
            by_image = []
            for batch in batches:
                outputs = torch.stack([
                    batch.output(model, _noisy(batch.inputs, sigma))
                    for _ in range(draws)
                ])
                by_image.append(outputs.double().var(0).mean(1))
                bar.step()
            variances.append(Estimate.of(torch.cat(by_image).cpu()))
    bar.end()
    return OutputVariance(
        tuple(sigmas), tuple(variances),
        float(clean.double().var(0).mean()))


def _noisy(inputs: Tensor, sigma: float) -> Tensor:
    return inputs + sigma * torch.randn_like(inputs)
