"""Noise of one quantization step on features, or on weights.

What FPQ trains with: stochastic feature perturbation, equation (9) of arXiv
2503.11159, and its counterpart on weights. A float layer's noise has the step
that 4 bits would give it by equation (4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch
from .measuring import hook_removed, layer_kind, values_restored

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
