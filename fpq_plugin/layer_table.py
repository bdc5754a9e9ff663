"""The table of what was quantized and why."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from .layers import Backend, QuantizedLayer, find_weight, sources, why_float
from .options import FLOAT_BITS


@dataclass(frozen=True)
class LayerRow:
    """One layer of the model, or one tensor that is of no such layer.

    Attributes:
        name (str): The layer's, or the tensor's, name in the model.
        type (str): The layer's class before the swap.
        weight_bits (int): Bits of the weight, 32 for float.
        activation_bits (int): Bits of the input, 32 for float.
        shape (tuple): Shape of the weight.
        why (str): The reason for these bits.
    """

    name: str
    type: str
    weight_bits: int
    activation_bits: int
    shape: tuple[int, ...]
    why: str


class LayerTable(list):
    """List of :class:`LayerRow`; ``str()`` draws it.

    Examples:
        >>> from torch import nn
        >>> from fpq_plugin import convert
        >>> table = convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
        >>> [(row.name, row.weight_bits) for row in table]
        [('0', 8), ('1', 8)]
    """

    def quantized(self) -> list[LayerRow]:
        """The rows of which weight or input is quantized."""
        return [
            row for row in self
            if min(row.weight_bits, row.activation_bits) < FLOAT_BITS
        ]

    def left_float(self, names: list[str], why: str) -> LayerTable:
        """The table with the layers of these names float, and the reason."""
        return LayerTable(
            replace(row, weight_bits=FLOAT_BITS, activation_bits=FLOAT_BITS,
                    why=why)
            if row.name in names else row for row in self)

    def weight_bytes(self) -> float:
        """Bytes of the listed weights at their bits (scales not counted)."""
        total = 0
        for row in self:
            size = 1
            for length in row.shape:
                size *= length
            total += size * row.weight_bits
        return total / 8

    def __str__(self) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE)
        for title in ('layer', 'type', 'W bits', 'A bits', 'weight', 'why'):
            table.add_column(title, no_wrap=True)
        for row in self:
            table.add_row(row.name, row.type, str(row.weight_bits),
                          str(row.activation_bits),
                          'x'.join(map(str, row.shape)), row.why)
        out = io.StringIO()
        Console(file=out, width=400).print(table)
        return '\n'.join(line.rstrip()
                         for line in out.getvalue().splitlines())


def rows(model: nn.Module, reasons: Mapping[str, str],
         backend: Backend) -> list[LayerRow]:
    """What has weights: layers, and parameters under other names.

    Args:
        model (nn.Module): A converted model.
        reasons (Mapping[str, str]): From the names of the layers that could
            be quantized to the reasons for their bits.
        backend (Backend): The backend with the registered types.

    Returns:
        list[LayerRow]: A row for each layer with a weight of two or more
        axes, and for each other parameter, or buffer that a checkpoint holds,
        of two or more axes, in the order of their modules.
    """
    modules = dict(model.named_modules())
    layers = {}
    taken: set[int] = set()
    for name, module in modules.items():
        weight = find_weight(module)
        if weight is not None and weight.dim() > 1:
            why = reasons.get(name) or why_float(module, backend)
            layers[name] = _layer_row(name, module, weight, why)
            taken.update(map(id, [weight, *sources(module)]))
    found = []
    for name, module in modules.items():
        if name in layers:
            found.append(layers[name])
        # A mask of a layer's weight is no weight itself.
        of_layer = name in layers or '.parametrizations.' in f'.{name}.'
        for key, value, kind in _own_tensors(module, not of_layer):
            if value.dim() > 1 and id(value) not in taken:
                taken.add(id(value))
                found.append(_tensor_row(f'{name}.{key}'.lstrip('.'), module,
                                         value, kind))
    return found


def _own_tensors(module: nn.Module,
                 buffers: bool) -> Iterator[tuple[str, Tensor, str]]:
    """Parameters, and what a checkpoint holds that may be a fixed weight."""
    for name, parameter in module.named_parameters(recurse=False):
        yield name, parameter, 'parameter'
    for name, buffer in module.named_buffers(recurse=False):
        if (buffers and buffer.is_floating_point()
                and name not in module._non_persistent_buffers_set):
            yield name, buffer, 'buffer'


def _layer_row(name: str, layer: nn.Module, weight: Tensor,
               why: str | None) -> LayerRow:
    kind = (layer.float_type
            if isinstance(layer, QuantizedLayer) else type(layer))

    def bits(part: str) -> int:
        return getattr(getattr(layer, part, None), 'num_bits', FLOAT_BITS)

    return LayerRow(name, kind.__name__, bits('weight_quantizer'),
                    bits('input_quantizer'), tuple(weight.shape),
                    why or 'default')


def _tensor_row(name: str, owner: nn.Module, value: Tensor,
                what: str) -> LayerRow:
    kind = type(owner)
    return LayerRow(
        name, kind.__name__, FLOAT_BITS, FLOAT_BITS, tuple(value.shape),
        f'a {what}; type {kind.__module__}.{kind.__qualname__} not '
        'registered')
