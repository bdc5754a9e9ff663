"""Which layers of a quantized model to give more bits.

All functions take a model's rows of ``analysis.json``, a dict for each
layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

BIT_WIDTHS = (4, 8)
"""The bits that are suggested: the next of these above a layer's own."""

DECIBELS_PER_BIT = 6.02
"""What one bit more adds to an SQNR: 20 log10(2)."""

_OPTIONS = dict(weight='weight', input='activation')


def worst_layers(rows: Iterable[dict[str, Any]],
                 most: int | None = None) -> list[dict[str, Any]]:
    """The layers that quantization costs most, the worst first.

    Args:
        rows (Iterable[dict]): The model's rows.
        most (int, optional): How many. Defaults to None, a quarter of the
            layers that can be given more bits, five at most.

    Returns:
        list[dict]: Rows by output SQNR, the lowest first, without layers
        that are float, or whose error is that of a part with 8 bits.
    """
    ranked = sorted((row for row in rows if parts_to_raise(row)),
                    key=lambda row: row['sqnr']['output'])
    if most is None:
        most = min(5, math.ceil(len(ranked) / 4))
    return ranked[:most]


def parts_to_raise(row: dict[str, Any]) -> dict[str, int]:
    """Which parts of a layer get how many bits.

    The part with the lower SQNR makes the layer's error; both do if less
    than one bit lies between them.

    Args:
        row (dict): A layer's row.

    Returns:
        dict[str, int]: Of 'weight' and 'input', the bits suggested; empty if
        there is nothing to give.
    """
    errors = {
        part: row['sqnr'][part]
        for part in ('weight', 'input')
        if row['sqnr'] and row['sqnr'][part] is not None
    }
    return {
        part: next(b for b in BIT_WIDTHS if b > row[f'{part}_bits'])
        for part, error in errors.items()
        if error < min(errors.values()) + DECIBELS_PER_BIT
        and row[f'{part}_bits'] < BIT_WIDTHS[-1]
    }


def more_kilobytes(row: dict[str, Any]) -> float:
    """What a layer's suggestion adds to the model's size, in kB."""
    bits = parts_to_raise(row).get('weight', row['weight_bits'])
    return row['weights'] * (bits - row['weight_bits']) / 8 / 1000


def overrides(rows: Sequence[dict[str, Any]]) -> dict[str, dict]:
    """The hook's option ``overrides`` that gives the layers the bits.

    Args:
        rows (Sequence[dict]): Rows of :func:`worst_layers`.

    Returns:
        dict[str, dict]: From layer name to options.
    """
    return {
        row['name']: {
            _OPTIONS[part]: dict(bits=bits)
            for part, bits in parts_to_raise(row).items()
        }
        for row in rows
    }


def overrides_text(rows: Sequence[dict[str, Any]]) -> str:
    """The same as Python, to paste into the hook's options."""
    lines = []
    for name, options in overrides(rows).items():
        inside = ', '.join(f'{part}=dict(bits={option["bits"]})'
                           for part, option in options.items())
        lines.append(f'    {name!r}: dict({inside}),\n')
    return 'overrides={\n' + ''.join(lines) + '}'
