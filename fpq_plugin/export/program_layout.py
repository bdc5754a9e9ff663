"""An exported program's quantizers, in the places that an engine looks at.

An engine finds a layer on integers by its neighbours: ``dequantize, layer,
activation, quantize``, and nothing between. Here quantizers move there, and
ranges that are narrower than their type are kept without bounds, which
engines do not read. Layers that stay between float tensors get their weights
as float. No value changes.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .integers import INTEGER_TYPES

_ATEN = torch.ops.aten
_OPS = torch.ops.quantized_decomposed
_LOW, _HIGH = next((kind.low, kind.high) for kind in INTEGER_TYPES
                   if kind.name == 'INT8')
# They choose among their input's values: what quantizes these may come before.
_MOVES = frozenset({
    _ATEN.max_pool2d.default, _ATEN.view.default, _ATEN.reshape.default,
    _ATEN.flatten.using_ints, _ATEN.permute.default, _ATEN.transpose.int,
    _ATEN.slice.Tensor, _ATEN.squeeze.dim, _ATEN.squeeze.dims,
    _ATEN.unsqueeze.default, _ATEN.clone.default})
# The layers that were seen to run on integers; others stay float.
_LAYERS = frozenset({_ATEN.conv2d.default, _ATEN.conv2d.padding,
                     _ATEN.linear.default})
_AT_LEAST_0 = frozenset({_ATEN.relu.default, _ATEN.relu6.default,
                         _ATEN.sigmoid.default, _ATEN.softmax.int})
_MEANS = frozenset({_ATEN.adaptive_avg_pool2d.default,
                    _ATEN.avg_pool2d.default, _ATEN.mean.dim})
_BOUNDED = frozenset({_ATEN.hardtanh.default, _ATEN.clamp.default})
# Engines do one of them in a layer.
_AFTER = frozenset({_ATEN.relu.default, _ATEN.relu6.default,
                    _ATEN.hardtanh.default})
FLOATS = 'floats'
"""The buffer of a weight's quantizer whose layer runs in float."""


def lay_out(graph: GraphModule) -> None:
    """Bring a program's quantizers to where layers run on integers.

    Args:
        graph (GraphModule): What ``ExportedProgram.module`` gives, without
            operations in place, and all integers int8; changed in place.
    """
    _drop_repeated(graph.graph)
    while _move_back(graph.graph):
        _drop_repeated(graph.graph)
    for node in _quantizers(graph.graph):
        _keep_range(graph.graph, node)
    for node in list(graph.graph.nodes):
        if node.target is _ATEN.cat.default:
            _quantize_alike(graph.graph, node)
    for node in list(graph.graph.nodes):
        if _is_weight(node) and not all(
                _is_on_integers(user, node) for user in node.users):
            _unpack(graph, node)
    _give_each_reader_its_own(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _quantizers(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes
            if node.target is _OPS.quantize_per_tensor.default]


def _dequantizers(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes
            if node.target is _OPS.dequantize_per_tensor.default]


def _is_dequantized(node: Any) -> bool:
    return isinstance(node, Node) and (
        node.target is _OPS.dequantize_per_tensor.default
        and isinstance(node.args[0], Node)
        and node.args[0].target is _OPS.quantize_per_tensor.default)


# -- one quantizer for a tensor -------------------------------------------

def _drop_repeated(graph: Graph) -> None:
    """Quantize a tensor once where it was quantized alike."""
    for node in _quantizers(graph):
        source = node.args[0]
        if _is_dequantized(source) and source.args[1:] == node.args[1:]:
            _replace(node, source.args[0])
            continue
        first = next(user for user in source.users
                     if user.target is node.target
                     and user.args == node.args)
        if first is not node:
            _replace(node, first)


def _replace(node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _move_back(graph: Graph) -> bool:
    """Quantize before what moves values; whether something changed."""
    for node in _quantizers(graph):
        moved = node.args[0]
        if moved.target not in _MOVES or len(moved.users) > 1:
            continue
        source = moved.args[0]
        if _is_dequantized(source) and source.args[1:] == node.args[1:]:
            continue
        with graph.inserting_before(moved):
            before = graph.call_function(
                node.target, (source, *node.args[1:]))
            moved.args = (_dequantized(graph, before), *moved.args[1:])
        return True
    return False


def _dequantized(graph: Graph, quantized: Node) -> Node:
    return graph.call_function(_OPS.dequantize_per_tensor.default,
                               (quantized, *quantized.args[1:]))


# -- narrow ranges --------------------------------------------------------

def _keep_range(graph: Graph, node: Node) -> None:
    """Keep a narrow range by the end of int8, and by an activation."""
    source, step, zero_point, low, high, kind = node.args
    if (low, high) == (_LOW, _HIGH):
        return
    # The type itself ends above.
    shift = _HIGH - high
    numbers = step, zero_point + shift, _LOW, _HIGH, kind
    for user in list(node.users):
        user.args = (node, *numbers)
    if not _is_at_least(source, step * (low - zero_point)):
        bounds = step * (low - zero_point), step * (high - zero_point)
        with graph.inserting_before(node):
            source = _clamped(graph, source, bounds, numbers)
    node.args = (source, *numbers)


def _clamped(graph: Graph, source: Node, bounds: tuple[float, float],
             numbers: tuple) -> Node:
    if source.target in _LAYERS and len(source.users) == 1 or (
            _is_dequantized(source)):
        return graph.call_function(_ATEN.hardtanh.default, (source, *bounds))
    # What else runs on integers ends in a quantizer.
    wide = graph.call_function(_OPS.quantize_per_tensor.default,
                               (source, *numbers))
    return graph.call_function(_ATEN.hardtanh.default,
                               (_dequantized(graph, wide), *bounds))


def _is_at_least(node: Node, bound: float) -> bool:
    """Whether a tensor's values are known to be a bound or more."""
    if bound <= 0 and node.target in _AT_LEAST_0:
        return True
    if node.target in _BOUNDED:
        lowest = node.args[1] if len(node.args) > 1 else None
        return isinstance(lowest, (int, float)) and lowest >= bound
    if _is_dequantized(node):
        _, step, zero_point, low, *_ = node.args
        return step * (low - zero_point) >= bound or _is_at_least(
            node.args[0].args[0], bound)
    if node.target in _MOVES | _MEANS:
        # A padded pool has zeros beside them.
        return bound <= 0 and _is_at_least(node.args[0], bound)
    return False


# -- concatenations -------------------------------------------------------

def _quantize_alike(graph: Graph, cat: Node) -> None:
    """Give operands their result's quantizer: XNNPACK's kernel takes no other.

    What is concatenated is quantized to the same values before and after.
    """
    readers = list(cat.users)
    if len(readers) != 1 or (
            readers[0].target is not _OPS.quantize_per_tensor.default) or (
            not all(map(_is_dequantized, cat.args[0]))):
        return
    numbers, operands = readers[0].args[1:], []
    with graph.inserting_before(cat):
        for operand in cat.args[0]:
            if operand.args[1:] != numbers:
                operand = _dequantized(graph, graph.call_function(
                    _OPS.quantize_per_tensor.default, (operand, *numbers)))
            operands.append(operand)
    cat.args = (operands, *cat.args[1:])


# -- weights of layers in float -------------------------------------------

def _is_weight(node: Node) -> bool:
    return node.target in (_OPS.dequantize_per_channel.default,
                           _OPS.dequantize_per_tensor.default) and (
        node.args[0].op == 'get_attr')


def _is_on_integers(layer: Node, weight: Node) -> bool:
    """Whether a layer stands between quantizers, its activation included."""
    if layer.target not in _LAYERS or layer.args[1] is not weight:
        return False
    users = list(layer.users)
    if len(users) == 1 and users[0].target in _AFTER:
        users = list(users[0].users)
    return _is_dequantized(layer.args[0]) and len(users) == 1 and (
        users[0].target is _OPS.quantize_per_tensor.default)


def _unpack(graph: GraphModule, node: Node) -> None:
    """Store a weight as float: the engine's float kernels take no other."""
    place = str(node.args[0].target).rpartition('.')[0]
    value = node.target(*(
        attrgetter(each.target)(graph) if isinstance(each, Node) else each
        for each in node.args))
    graph.get_submodule(place).register_buffer(FLOATS, value)
    with graph.graph.inserting_before(node):
        _replace(node, graph.graph.get_attr(f'{place}.{FLOATS}'))


# -- readers --------------------------------------------------------------

def _give_each_reader_its_own(graph: Graph) -> None:
    """Dequantize for each reader: an engine merges it with one of them."""
    for node in _dequantizers(graph):
        if not isinstance(node.args[0], Node):
            continue
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                user.replace_input_with(
                    node, graph.call_function(node.target, node.args))
