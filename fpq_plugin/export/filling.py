"""Weights of few bits, in the whole range of their type.

``q s = (2^k q) (s / 2^k)``: the values stay the same, bit for bit, and the
bias of a layer, which is in steps of input times weight, gets finer ones. An
8-bit kernel is as fast with these integers as with others.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..quantizers import Quantizer
from ..targets import Target
from .features import mark_before
from .integers import UINT8, integer_grid
from .lowering import Weights, number_of


def fill_weights(graph: ir.Graph, weights: Weights,
                 quantizers: Sequence[Quantizer], target: Target) -> None:
    """Multiply weights by powers of two, and divide their steps by them.

    See :meth:`.IntegerGrid.fill`.

    Args:
        graph (ir.Graph): The graph with features' quantizers as marks.
        weights (Weights): The quantized weights, their grids changed in
            place.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        target (Target): What is to take them.
    """
    for value, grid in weights.items():
        if value is None:
            continue
        grid.largest_factor = max((
            _largest_factor(node, value, quantizers, target)
            for node in value.consumers()), default=UINT8.high)
        if not grid.zero_point.any():
            grid.fill()


def _largest_factor(node: ir.Node, weight: ir.Value,
                    quantizers: Sequence[Quantizer], target: Target) -> int:
    """The largest integer that a node multiplies with a weight, as uint8."""
    found = [mark_before(x) for x in node.inputs[:2] if x is not weight]
    if not found or found[0] is None:
        return UINT8.high
    grid = integer_grid(quantizers[number_of(found[0])], target=target)
    return grid.high if grid.type is UINT8 else UINT8.high
