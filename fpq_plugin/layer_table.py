"""The table of what was quantized and why."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

from .options import FLOAT_BITS


@dataclass(frozen=True)
class LayerRow:
    """One layer of the model.

    Attributes:
        name (str): The layer's name in the model.
        type (str): Its class before the swap.
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
