"""The layers that are measured, of a quantized or a float model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..backends import get_backend
from ..layers import QuantizedLayer, quantized_type
from ..patterns import matches, refuse_unmatched


def weighted_layers(model: nn.Module,
                    patterns: Iterable[str] | None = None,
                    key: str = 'layers') -> dict[str, nn.Module]:
    """The layers with a weight that is, or could be, quantized, by name.

    The same layers of a float model and of its quantized form, so that both
    can be held against each other.

    Args:
        model (nn.Module): The model, converted or not.
        patterns (Iterable[str], optional): Names of layers or of modules
            that hold them, ``*`` allowed. Defaults to None, all.
        key (str): The option's name, for the message. Defaults to 'layers'.

    Raises:
        ValueError: If there are none, or a pattern matches none; the message
            has the nearest names.
    """
    backend = get_backend('torch_ao')
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLayer)
        or quantized_type(module, backend) is not None
    }
    if not found:
        raise ValueError('the model has no layer of a type that can be '
                         'quantized')
    if patterns is None:
        return found
    patterns = list(patterns)
    refuse_unmatched(key, patterns, list(found))
    return {
        name: layer
        for name, layer in found.items()
        if any(matches(name, pattern) for pattern in patterns)
    }


def layer_kind(layer: nn.Module, name: str) -> type[QuantizedLayer]:
    """The class of a layer's quantized form; it tells the layer's axes.

    Args:
        layer (nn.Module): The layer, quantized or not.
        name (str): Its name, for the message.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(layer, QuantizedLayer):
        return type(layer)
    kind = quantized_type(layer, get_backend('torch_ao'))
    if kind is None:
        raise ValueError(f'{name!r} is a {type(layer).__name__}, which has no '
                         'quantized form')
    return kind
