"""Biases as an engine's integer kernels add them.

A kernel sums products of integers, and adds a bias as an integer: in steps of
input times weight, times the gain of a batch norm that is folded into the
weight. Where the target does so, the model in eval mode has its biases rounded
to such steps, so that what is validated and tested is what the file computes.
Training goes by the float biases, but for batch norms that are in eval mode
there as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_OF, _ROUNDED = 'rounded_bias_of', 'bias_is_rounded'
# An int32 has room for sums beside it.
_LARGEST = 2**30


def round_bias_of(module: nn.Module, layer: nn.Module) -> None:
    """Round a layer's bias in eval mode.

    Args:
        module (nn.Module): The batch norm that follows the layer, or the
            layer itself.
        layer (nn.Module): The quantized layer.
    """
    if module is not layer:
        setattr(module, _OF, (layer, ))  # in a tuple it is no child
    module.register_forward_hook(_add_shift)


def rounded_layer(module: nn.Module) -> nn.Module | None:
    """The layer whose bias :func:`round_bias_of` rounds in a module."""
    if _add_shift not in module._forward_hooks.values():
        return None
    return getattr(module, _OF, (module, ))[0]


def unround_bias(module: nn.Module) -> None:
    """Undo :func:`round_bias_of`."""
    for number, hook in list(module._forward_hooks.items()):
        if hook is _add_shift:
            del module._forward_hooks[number]
            vars(module).pop(_OF, None)


def _add_shift(module: nn.Module, args: tuple, output: Tensor) -> Any:
    layer: Any = rounded_layer(module)
    shift = None
    if not (module.training or getattr(module, _ROUNDED, False)):
        shift = bias_shift(module, layer)
    if shift is None:
        return None
    # As many axes behind the channels as a kernel has, with a batch or not.
    behind = len(getattr(layer, 'kernel_size', ()))
    return output + shift.view(-1, *[1] * behind).to(output.dtype)


@torch.no_grad()
def bias_shift(module: nn.Module, layer: nn.Module) -> Tensor | None:
    """What rounding adds to the results of a layer's channels.

    Args:
        module (nn.Module): The batch norm that follows it, or the layer.
        layer (nn.Module): The quantized layer.

    Returns:
        Tensor | None: Shape (C,), half a step at most; None while nothing is
        quantized.
    """
    quantizers = layer.weight_quantizer, layer.input_quantizer
    if not all(each.has_step() for each in quantizers):
        return None
    weight, x = (each.step().double() for each in quantizers)
    # An export fills weights of few bits up to 8: their steps are finer. One
    # bit is left to it, for kernels whose sums would saturate.
    step = weight * x / 2**max(7 - quantizers[0].num_bits, 0)
    bias = torch.zeros_like(step) if layer.bias is None else (
        layer.bias.double())
    if module is not layer:
        gain = module.weight.double() / (
            module.running_var.double() + module.eps).sqrt()
        bias = (bias - module.running_mean) * gain + module.bias
        # A channel that is shut keeps the step that it had.
        step = step * torch.where(gain == 0, torch.ones_like(gain), gain.abs())
    number = bias / step
    shift = number.round() * step - bias
    return torch.where(number.abs() < _LARGEST, shift,
                       torch.zeros_like(shift)).float()


@contextmanager
def rounded_biases(model: nn.Module) -> Iterator[None]:
    """Inside, the model has other parameters, which are rounded.

    A trace keeps them; the model has its own again afterwards.

    Args:
        model (nn.Module): A model in eval mode.
    """
    kept = []
    try:
        for module in model.modules():
            layer = rounded_layer(module)
            shift = None if layer is None else bias_shift(module, layer)
            if shift is not None:
                kept.append((module, module.bias))
                module.bias = nn.Parameter(
                    module.bias.detach() + shift, requires_grad=False)
                setattr(module, _ROUNDED, True)
        yield
    finally:
        for module, bias in kept:
            module.bias = bias
            delattr(module, _ROUNDED)


def can_be_rounded(module: nn.Module, layer: nn.Module) -> bool:
    """Whether a layer's bias is one that a kernel adds.

    Args:
        module (nn.Module): The batch norm that follows it, or the layer.
        layer (nn.Module): The quantized layer.

    Returns:
        bool: False without a bias, without an integer input or weight, or
        with output channels on another axis of the weight.
    """
    return (isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))
            and getattr(module, 'bias', None) is not None
            and layer.weight_axis == 0
            and layer.weight_quantizer is not None
            and layer.input_quantizer is not None
            and (module is layer or isinstance(module, _BatchNorm)
                 and module.weight is not None
                 and module.running_var is not None))
