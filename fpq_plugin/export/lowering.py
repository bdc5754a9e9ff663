"""Fake quantizers of weights become stored integers.

The traced graph has a mark, a node ``fpq::FakeQuantize`` with a number, where
the model calls a fake quantizer (see :mod:`.build`). A mark on a constant is
a weight's: the weight is stored as integers, and a DequantizeLinear makes it
float. Those on features are in :mod:`.features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..quantizers import Quantizer
from ..targets import STANDARD, Target
from .integers import UINT8, IntegerGrid, weight_integers
from .rewriting import add_constant, only_reader, replace_nodes

MARK = 'FakeQuantize'
# Key of a stored weight's notes: the name of its layer.
LAYER = 'fpq.layer'
Weights = dict[ir.Value | None, IntegerGrid]
"""The grid of each quantized weight, by the value that stands for it."""


def number_of(mark: ir.Node) -> int:
    """The number of the quantizer that a mark stands for."""
    return mark.attributes['number'].as_int()


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is known before an input is."""
    return value is not None and value.is_initializer()


def marks(graph: ir.Graph, of_weights: bool) -> list[ir.Node]:
    """The marks on constants, or those on features."""
    return [
        node for node in graph if node.op_type == MARK
        and is_constant(node.inputs[0]) == of_weights
    ]


def fold_weights(graph: ir.Graph, model: nn.Module,
                 quantizers: Sequence[Quantizer], example: Tensor) -> None:
    """Make what a mark reads a constant, where no input has a part in it.

    A layer that standardizes its weight quantizes the outcome. The value is
    torch's own: at the edge between two steps the last digit counts.

    Args:
        graph (ir.Graph): The traced graph, changed in place.
        model (nn.Module): What was traced, in eval mode.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        example (Tensor): An input, (N, ...).
    """
    for mark in marks(graph, of_weights=False):
        read = mark.inputs[0]
        if read is not None and not is_constant(read) and _is_fixed(read):
            value = _seen_by(quantizers[number_of(mark)], model, example)
            read.replace_all_uses_with(
                add_constant(graph, value.cpu().numpy()))


def _is_fixed(value: ir.Value) -> bool:
    """Whether a value is made of constants alone, quantizers aside."""
    node = value.producer()
    if is_constant(value) or node is None:
        return is_constant(value)
    return node.op_type != MARK and all(
        _is_fixed(each) for each in node.inputs if each is not None)


@torch.no_grad()
def _seen_by(quantizer: Quantizer, model: nn.Module,
             example: Tensor) -> Tensor:
    """The tensor that a quantizer is called with."""
    seen = []
    hook = quantizer.register_forward_pre_hook(
        lambda _, args: seen.append(args[0]))
    try:
        model(example)
    finally:
        hook.remove()
    return seen[-1]


def layer_of(node: ir.Node, names: Sequence[str]) -> str:
    """The name of the layer that a node computes, by its weight's mark.

    Args:
        node (ir.Node): A node with a weight or features of a mark.
        names (Sequence[str]): The quantizers' names.
    """
    for value in reversed(node.inputs[:2]):
        name = _maker(value, names)
        if name:
            return name
    return ''


def _maker(value: ir.Value | None, names: Sequence[str]) -> str:
    """The layer of the first mark before a value, '' without one."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type != MARK:
        node = node.inputs[0].producer() if node.inputs[0] else None
    return names[number_of(node)].rpartition('.')[0] if node else ''


def find_weights(graph: ir.Graph,
                 quantizers: Sequence[Quantizer],
                 names: Sequence[str],
                 target: Target = STANDARD) -> Weights:
    """Find the integers of each quantized weight.

    Args:
        graph (ir.Graph): The traced graph. A weight of several marks, as a
            layer that is called twice has it, keeps one; for an engine each
            call keeps its own that has a batch norm of its own behind it.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        names (Sequence[str]): Their names, for messages.
        target (Target): What is to take them. Defaults to STANDARD.

    Returns:
        Weights: The integers, by the value that :func:`store_weights`
        replaces: what the mark makes, or the Transpose after it.

    Raises:
        ValueError: Naming a weight that no integers stand for.
    """
    found: Weights = {}
    first: dict[tuple[ir.Value | None, int], ir.Value] = {}
    for mark in marks(graph, of_weights=True):
        number, (stored, ), (value, ) = (
            number_of(mark), mark.inputs, mark.outputs)
        known = first.setdefault((stored, number), value)
        if known is not value and not (target.ends_quantized
                                       and _has_norm(value)):
            value.replace_all_uses_with(known)
            continue
        try:
            grid = weight_integers(quantizers[number], array_of(stored),
                                   target)
        except ValueError as error:
            raise ValueError(
                f'not exported: {names[number]}: {error}') from error
        found[value] = grid
    # Once the marks of one weight are one, a Transpose is its only reader.
    return {_turned(value, grid): grid for value, grid in found.items()}


def _has_norm(weight: ir.Value | None) -> bool:
    """Whether a weight is one convolution's that a batch norm follows."""
    conv = only_reader(weight)
    norm = None if conv is None else only_reader(conv.outputs[0])
    return norm is not None and norm.op_type == 'BatchNormalization'


def array_of(value: ir.Value | None) -> Any:
    """A constant's array, None for another value."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def _turned(value: ir.Value | None, grid: IntegerGrid) -> ir.Value | None:
    """The value after a Transpose, which the grid takes on."""
    turn = only_reader(value)
    if turn is None or turn.op_type != 'Transpose':
        return value
    grid.transpose(list(turn.attributes['perm'].as_ints()))
    return turn.outputs[0]


def store_weights(graph: ir.Graph, weights: Weights, names: Sequence[str],
                  unsigned: bool) -> None:
    """Store each weight as integers that a DequantizeLinear reads.

    Args:
        graph (ir.Graph): The graph, changed in place.
        weights (Weights): The weights.
        names (Sequence[str]): The quantizers' names.
        unsigned (bool): Whether int8 becomes uint8, 128 higher, where it
            may saturate.
    """
    for value, grid in weights.items():
        if unsigned and grid.type.low == -128 and grid.may_saturate():
            grid.weight = grid.weight + 128
            grid.zero_point = grid.zero_point + 128
            grid.type = UINT8
        stored = add_constant(graph, grid.weight, ir.DataType[grid.type.name])
        stored.meta[LAYER] = _maker(value, names)
        maker = value.producer() if value is not None else None
        assert maker is not None
        replace_nodes(graph, [maker], [
            ir.node('DequantizeLinear', [stored, *parameters(graph, grid)],
                    axis_of(grid))])


def parameters(graph: ir.Graph, grid: IntegerGrid) -> list[ir.Value]:
    """Step and zero point, as both nodes take them.

    onnxruntime's QGemm wants a weight's zero point where it is 0 as well, and
    1.24 ends the process over a convolution without with its
    session.x64quantprecision.
    """
    return [add_constant(graph, grid.step),
            add_constant(graph, grid.zero_point, ir.DataType[grid.type.name])]


def axis_of(grid: IntegerGrid) -> dict[str, int]:
    return {} if grid.axis is None else dict(axis=grid.axis)
