"""A layer's outputs: channel ranges, distribution, quantization error.

Figs. 3 and 4 of arXiv 2503.11159, and the signal to quantization noise ratio
of each layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..layers import QuantizedLayer, quantized_layers
from .batches import Batch
from .measuring import (
    attention_as_layers,
    hook_removed,
    layer_kind,
    left_unchanged,
)

BINS = 100
TAIL = 1e-3
"""Part of the values at each end that a histogram's bins leave out."""


@dataclass(frozen=True)
class ChannelRanges:
    """Statistics of a layer's output, each of shape (channels, ).

    Attributes:
        low (Tensor): Minimum over images and space.
        high (Tensor): Maximum.
        mean (Tensor): Mean.
    """

    low: Tensor
    high: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Histograms:
    """Densities on the same bins.

    Attributes:
        edges (Tensor): Edges of the bins, (bins + 1, ).
        densities (dict[str, Tensor]): By model, (bins, ); a value beyond
            the edges counts in no bin.
    """

    edges: Tensor
    densities: dict[str, Tensor]


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


def channel_ranges(model: nn.Module, batches: Sequence[Batch],
                   name: str) -> ChannelRanges:
    """Each channel's range and mean at the layer ``name``, as in Fig. 3.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        name (str): The layer's name.

    Returns:
        ChannelRanges: In units of the layer's output.

    Raises:
        ValueError: If the layer is of no type that can be quantized, or the
            model does not call it.
    """
    output = layer_output(model, batches, name)
    low, high = output.aminmax(dim=1)
    return ChannelRanges(low, high, output.mean(1))


def feature_histograms(models: Mapping[str, nn.Module],
                       batches: Mapping[str, Sequence[Batch]],
                       name: str) -> Histograms:
    """Histograms of the layer ``name``'s output, as in Fig. 4.

    The bins span all models' values but the outermost 0.1 % of each end.

    Args:
        models (Mapping[str, nn.Module]): Models by label.
        batches (Mapping[str, Sequence[Batch]]): Each model's data.
        name (str): The layer's name.

    Returns:
        Histograms: One density for each model.

    Raises:
        ValueError: If the layer is of no type that can be quantized, or a
            model does not call it.
    """
    values = {
        label: layer_output(model, batches[label], name).flatten().double()
        for label, model in models.items()
    }
    low = min(_quantile(v, TAIL) for v in values.values())
    high = max(_quantile(v, 1 - TAIL) for v in values.values())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    width = (high - low) / BINS
    densities = {
        label: torch.histc(v, BINS, low, high) / (len(v) * width)
        for label, v in values.items()
    }
    return Histograms(edges, densities)


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
                        hook_removed(
                            quantizer.register_forward_hook(
                                _measure_quantizer(powers[name, part]))))
            stack.enter_context(
                hook_removed(
                    layer.register_forward_hook(
                        _measure_layer(powers[name, 'output']),
                        with_kwargs=True)))
        with left_unchanged(model, 0):
            for batch in batches:
                batch.output(model)
    return {
        name: LayerSQNR(powers[name, 'weight'].decibel(),
                        powers[name, 'input'].decibel(),
                        cast(float, powers[name, 'output'].decibel()))
        for name in layers if powers[name, 'output'].signal
    }


@attention_as_layers
def layer_output(model: nn.Module, batches: Sequence[Batch],
                 name: str) -> Tensor:
    """Outputs of one layer over all batches, channels first.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        name (str): The layer's name.

    Returns:
        Tensor: (channels, values), on the CPU.

    Raises:
        ValueError: If the layer is of no type that can be quantized, or the
            model does not call it.
    """
    seen: list[Tensor] = []
    layer = model.get_submodule(name)
    axis = layer_kind(layer, name).channel_axis

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        output = getattr(output, 'value', output).detach()
        seen.append(output.movedim(axis, 0).flatten(1).cpu())

    with left_unchanged(model, 0), hook_removed(
            layer.register_forward_hook(keep)):
        for batch in batches:
            batch.output(model)
    if not seen:
        raise ValueError(f'the model does not call the layer {name!r}')
    return torch.cat(seen, dim=1)


def _quantile(values: Tensor, part: float) -> float:
    place = min(int(part * len(values)) + 1, len(values))
    return float(values.kthvalue(place).values)


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


def _measure_quantizer(power: _Power) -> Callable:

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        power.add(args[0].detach(), output.detach())

    return hook


def _measure_layer(power: _Power) -> Callable:

    def hook(layer: QuantizedLayer, args: tuple, kwargs: dict,
             output: Tensor) -> None:
        with torch.no_grad():
            exact = layer.float_type.forward(layer, *args, **kwargs)
        power.add(exact, getattr(output, 'value', output))

    return hook
