"""Fake quantizers of features become QuantizeLinear and DequantizeLinear.

The marks on features (see :mod:`.lowering`) become pairs of the two nodes. A
range that is narrower than its type is kept by a Clip. Where it is depends on
the target: in front of the pair in float, or between its nodes, on integers.
In the second form a layer is followed by QuantizeLinear directly, and
onnxruntime computes it on integers. For that, a ReLU in front becomes a bound
of the Clip, too, and what only moves values moves integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..quantizers import Quantizer
from ..targets import STANDARD, Target
from .integers import IntegerGrid, integer_grid
from .lowering import MARK, array_of, axis_of, marks, number_of, parameters
from .rewriting import add_constant, only_reader, replace_nodes

# What is on a grid before them is so behind them, and a bound before them is
# one behind them.
MOVES = ('Reshape', 'Flatten', 'Transpose', 'Squeeze', 'Unsqueeze', 'Slice',
         'MaxPool')


def _moves(node: ir.Node) -> bool:
    """Whether a node moves values, and at most adds zeros, of any grid."""
    if node.op_type != 'Pad':
        return node.op_type in MOVES
    mode, value = node.attributes.get('mode'), [*node.inputs, None, None][2]
    return (mode is None or mode.as_string() == 'constant') and (
        value is None or array_of(value) == 0)


def mark_before(value: ir.Value | None) -> ir.Node | None:
    """The mark whose values a value holds, moved or not; None without."""
    node = value.producer() if value is not None else None
    while node is not None and _moves(node):
        moved = node.inputs[0]
        node = moved.producer() if moved is not None else None
    return node if node is not None and node.op_type == MARK else None


def place_marks(graph: ir.Graph, quantizers: Sequence[Quantizer],
                target: Target) -> None:
    """Leave one mark where the same quantizer has several on one tensor.

    A quantizer changes nothing of what it has quantized. A target with joints
    gets marks in front of moves, too: a layer before them ends in integers.

    Args:
        graph (ir.Graph): The traced graph, changed in place.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        target (Target): What is to take them.
    """
    first: dict[tuple[ir.Value, int], ir.Value] = {}
    for mark in marks(graph, of_weights=False):
        (value, ), number, (out, ) = (
            mark.inputs, number_of(mark), mark.outputs)
        assert value is not None
        before = mark_before(value)
        if before is not None and number_of(before) == number and (
                before.outputs[0] is value
                or quantizers[number].grid().ch_axis is None):
            known = value
        else:
            known = first.setdefault((value, number), out)
        if known is not out and not out.is_graph_output():
            out.replace_all_uses_with(known)
            graph.remove(mark, safe=True)
    for mark in marks(graph, of_weights=False):
        if target.joints and quantizers[
                number_of(mark)].grid().ch_axis is None:
            _put_first(graph, mark)


def _put_first(graph: ir.Graph, mark: ir.Node) -> None:
    """Put a mark in front of the moves that it alone reads.

    What asks for a tensor's shape alone is no reader.
    """
    while True:
        (moved, ), (out, ) = mark.inputs, mark.outputs
        move = moved.producer() if moved is not None else None
        before = move.inputs[0] if move is not None else None
        if moved is None or move is None or before is None or (
                not _moves(move) or only_reader(moved) is not mark
                or before.is_graph_output() or out.is_graph_output()):
            return
        readers = before.consumers()
        if any(node is not move and node.op_type != 'Shape'
               for node in readers):
            return
        out.replace_all_uses_with(moved)
        out.shape = before.shape
        mark.replace_input_with(0, before)
        graph.remove(mark)
        graph.insert_before(
            next(node for node in graph if node in readers), mark)
        for node in readers:
            node.replace_input_with(0, out)


def lower_features(graph: ir.Graph,
                   quantizers: Sequence[Quantizer],
                   target: Target = STANDARD) -> None:
    """Make each mark on features QuantizeLinear and DequantizeLinear.

    The bounds of a Clip are values of the grid, so it changes no other value.

    Args:
        graph (ir.Graph): The graph, changed in place.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        target (Target): What is to take them. Defaults to STANDARD.
    """
    grids = {
        mark: integer_grid(quantizers[number_of(mark)], target=target)
        for mark in marks(graph, of_weights=False)
    }
    again = {mark for mark in grids if mark_before(mark.inputs[0])}
    on_integers = target.narrow == 'integer'
    if on_integers:
        _bound_on_integers(graph, grids)
    shared: dict[int, list[ir.Value]] = {}
    for mark, grid in grids.items():
        number = number_of(mark)
        if number not in shared:
            shared[number] = parameters(graph, grid)
        both, axis, x = shared[number], axis_of(grid), mark.inputs[0]
        ends = np.array([grid.low, grid.high])
        nodes = []
        if not on_integers and not grid.fills_type():
            nodes.append(_clip(graph, x, (
                (ends - grid.zero_point) * grid.step).astype(np.float32)))
            x = nodes[-1].outputs[0]
        if on_integers and mark in again:
            nodes.append(_lookup(x))
            x = nodes[-1].outputs[0]
        nodes.append(ir.node('QuantizeLinear', [x, *both], axis))
        if on_integers and not grid.fills_type():
            kind = ir.DataType[grid.type.name]
            nodes.append(_clip(graph, nodes[-1].outputs[0],
                               ends.astype(kind.numpy())))
        nodes.append(ir.node('DequantizeLinear', [
            nodes[-1].outputs[0], *both], axis))
        replace_nodes(graph, [mark], nodes)
        if on_integers and grid.axis is None:
            _move_integers(graph, nodes[-1])


def _lookup(x: ir.Value | None) -> ir.Node:
    """What leaves values as they are, between two pairs of steps.

    Without it onnxruntime makes two pairs in a row one of yet another step.
    With it the way from integers to integers is its QLinearLeakyRelu, a table
    of 256 bytes that it fills by the same two nodes.
    """
    return ir.node('LeakyRelu', [x], dict(alpha=1.0))


def _clip(graph: ir.Graph, x: ir.Value | None, ends: np.ndarray) -> ir.Node:
    return ir.node('Clip', [x, *(
        add_constant(graph, end) for end in ends)])


def _bound_on_integers(graph: ir.Graph,
                       grids: dict[ir.Node, IntegerGrid]) -> None:
    """Let grids have the bounds of each ReLU and Clip that only they read.

    Rounding keeps the order: to clip first, or to clip the integers to what
    the bounds are rounded to, is the same.
    """
    for node in reversed(list(graph)):
        ends = _ends_of(node)
        found = _only_marks_behind(node.outputs[0]) if ends else None
        if not ends or not found or any(
                grids[mark].axis is not None for mark in found):
            continue
        for mark in found:
            grid = grids[mark]
            grid.low, grid.high = (
                int(np.clip(np.rint(end / grid.step) + grid.zero_point,
                            grid.low, grid.high)) for end in ends)
        assert node.inputs[0] is not None
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        graph.remove(node, safe=True)


def _ends_of(node: ir.Node) -> tuple[np.float32, np.float32] | None:
    """The bounds that a ReLU or a Clip has, None if they are not known."""
    ends = [np.float32(-np.inf), np.float32(np.inf)]
    if node.op_type == 'Relu':
        return np.float32(0), ends[1]
    if node.op_type != 'Clip':
        return None
    for number, value in enumerate(node.inputs[1:]):
        if value is not None:
            known = array_of(value)
            if known is None:
                return None
            ends[number] = np.float32(known)
    return ends[0], ends[1]


def _only_marks_behind(value: ir.Value) -> list[ir.Node] | None:
    """The marks that read a value, moved or not; None if others do."""
    if value.is_graph_output():
        return None
    found: list[ir.Node] = []
    for node in value.consumers():
        if node.op_type == MARK:
            found.append(node)
            continue
        behind = (_only_marks_behind(node.outputs[0])
                  if node.op_type in MOVES else None)
        if behind is None:
            return None
        found += behind
    return found


def _move_integers(graph: ir.Graph, dequantize: ir.Node) -> None:
    """Put DequantizeLinear behind what only moves values.

    onnxruntime wants it right in front of a layer.
    """
    value = dequantize.outputs[0]
    for move in value.consumers():
        moved = move.outputs[0]
        if move.op_type == 'Shape':
            move.replace_input_with(0, dequantize.inputs[0])
        if not _moves(move) or moved.is_graph_output():
            continue
        move.replace_input_with(0, dequantize.inputs[0])
        if move.op_type == 'Pad':
            move.resize_inputs(3)
            move.replace_input_with(2, dequantize.inputs[2])
        moved.type = moved.shape = None  # those of the float tensor
        uses = moved.uses()
        behind = ir.node('DequantizeLinear', [
            moved, *dequantize.inputs[1:]])
        for node, number in uses:
            node.replace_input_with(number, behind.outputs[0])
        graph.insert_after(move, behind)
        _move_integers(graph, behind)
