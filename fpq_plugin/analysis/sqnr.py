"""Signal to quantization noise ratio of every quantized layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..layers import QuantizedLayer, quantized_layers
from .batch import Batch
from .noise import removing
from .quiet import quiet


@dataclass(frozen=True)
class LayerSQNR:
    """``10 log10(sum x^2 / sum (x - x_hat)^2)``, in dB.

    Attributes:
        weight (float, optional): Of the weight; None: it is float.
        input (float, optional): Of the layer's input; None: it is float.
        output (float): Of the layer's output, against its float operation
            on the same input.
    """

    weight: float | None
    input: float | None
    output: float


def layer_sqnr(model: nn.Module,
               batches: Sequence[Batch]) -> dict[str, LayerSQNR]:
    """Measure the quantization error of each quantized layer.

    Args:
        model (nn.Module): The model; its state stays.
        batches (Sequence[Batch]): The data.

    Returns:
        dict[str, LayerSQNR]: By layer name; empty for a float model. Layers
        that the model does not call are left out.
    """
    layers = quantized_layers(model)
    powers = {
        (name, part): _Power()
        for name in layers for part in ('weight', 'input', 'output')
    }
    with ExitStack() as stack:
        for name, layer in layers.items():
            for part in ('weight', 'input'):
                quantizer = getattr(layer, f'{part}_quantizer')
                if quantizer is not None:
                    stack.enter_context(
                        removing(
                            quantizer.register_forward_hook(
                                _of_quantizer(powers[name, part]))))
            stack.enter_context(
                removing(
                    layer.register_forward_hook(
                        _of_layer(powers[name, 'output']),
                        with_kwargs=True)))
        with quiet(model, 0):
            for batch in batches:
                batch.output(model)
    return {
        name: LayerSQNR(powers[name, 'weight'].decibel(),
                        powers[name, 'input'].decibel(),
                        cast(float, powers[name, 'output'].decibel()))
        for name in layers if powers[name, 'output'].signal
    }


class _Power:
    """Power of a signal and of its error, summed over calls."""

    def __init__(self) -> None:
        self.signal = self.error = 0.0

    def add(self, exact: Tensor, quantized: Tensor) -> None:
        self.signal += float(exact.double().square().sum())
        self.error += float((quantized - exact).double().square().sum())

    def decibel(self) -> float | None:
        if not self.signal:
            return None
        if not self.error:
            return math.inf
        return 10 * math.log10(self.signal / self.error)


def _of_quantizer(power: _Power):

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        power.add(args[0].detach(), output.detach())

    return hook


def _of_layer(power: _Power):

    def hook(layer: QuantizedLayer, args: tuple, kwargs: dict,
             output: Tensor) -> None:
        with torch.no_grad():
            exact = layer.float_type.forward(layer, *args, **kwargs)
        power.add(exact, getattr(output, 'value', output))

    return hook
