"""Batch norms of an exported program, multiplied into its weights' steps.

``gamma (s q * x + b - mean) / std + beta`` is a convolution with the same
integers q, the step ``s |gamma| / std`` and another bias: nothing is rounded
anew. Where a gain is negative the integers of its channel change their sign.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.conv1d.default, _ATEN.conv2d.default,
                 _ATEN.conv3d.default)
_INT8 = torch.iinfo(torch.int8)


def fold_batch_norms(graph: GraphModule) -> None:
    """Fold each batch norm that only reads a quantized convolution.

    One is left as it is if its convolution's weight is used elsewhere, or has
    a -128 where the gain is negative.

    Args:
        graph (GraphModule): What ``ExportedProgram.module`` gives, with
            weights as ``quantized_decomposed`` has them; changed in place.
    """
    for norm in list(graph.graph.nodes):
        if norm.target is _ATEN.batch_norm.default:
            _fold(graph, norm)


def _fold(graph: GraphModule, norm: Node) -> None:
    conv = norm.args[0]
    if conv.target not in _CONVOLUTIONS or len(conv.users) > 1:
        return
    weight = conv.args[1]
    operators = torch.ops.quantized_decomposed
    if weight.target is not operators.dequantize_per_channel.default or (
            len(weight.users) > 1):
        return
    integers, steps, zero_points, axis = weight.args[:4]
    if axis != 0 or len(integers.users) > 1 or (
            _value(graph, zero_points).any()):
        return
    gamma, beta, mean, variance = (
        _value(graph, each) for each in norm.args[1:5])
    bias = _value(graph, conv.args[2]) if len(conv.args) > 2 else None
    one = torch.ones_like(mean, dtype=torch.float64)
    gain = (one if gamma is None else gamma) / (
        variance.double() + norm.args[7]).sqrt()
    shift = ((0 if bias is None else bias) - mean.double()) * gain + (
        0 if beta is None else beta)
    # A step must be positive; a channel without one has integers of 0.
    step = _value(graph, steps)
    shut = step * gain.abs() < torch.finfo(torch.float32).tiny
    gain = torch.where(shut, 0, gain)
    signed = _value(graph, integers).to(torch.int16)
    signed = signed * gain.sign().to(torch.int16).view(
        -1, *[1] * (signed.dim() - 1))
    if signed.max() > _INT8.max:
        return
    factor = torch.where(shut, one, gain.abs())
    low, high = weight.args[4:6]
    if (gain < 0).any():
        low, high = min(low, -high), min(max(high, -low), _INT8.max)
    _set(graph, integers, signed.to(torch.int8))
    _set(graph, steps, (step * factor).float())
    weight.args = (*weight.args[:4], low, high, *weight.args[6:])
    place = str(integers.target).rpartition('.')[0]
    graph.get_submodule(place).register_buffer('bias', shift.float())
    with graph.graph.inserting_before(conv):
        added = graph.graph.get_attr(f'{place}.bias')
    conv.args = (*conv.args[:2], added, *conv.args[3:])
    norm.replace_all_uses_with(conv)
    graph.graph.erase_node(norm)


def _value(graph: GraphModule, node: Any) -> Any:
    """The tensor that a node reads; None for none."""
    return None if node is None else attrgetter(node.target)(graph).detach()


def _set(graph: GraphModule, node: Node, value: Tensor) -> None:
    owner, _, name = str(node.target).rpartition('.')
    setattr(graph.get_submodule(owner), name, value)
