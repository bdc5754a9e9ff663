"""Uniform noise of one quantization step on features or on weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .batch import Batch
from .weighted_layers import layer_kind

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
