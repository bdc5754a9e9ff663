"""Weights that a layer computes from its parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from onnx import numpy_helper
from torch import Tensor, nn

from ..quantizers import Quantizer
from .graph import Graph
from .lower import MARK, marks, number_of


def fold_weights(graph: Graph, model: nn.Module,
                 quantizers: Sequence[Quantizer], example: Tensor) -> None:
    """Make what a mark reads a constant, where no input has a part in it.

    A layer that standardizes its weight quantizes the outcome. The value is
    torch's own: at the edge between two steps the last digit counts.

    Args:
        graph (Graph): The traced graph, changed in place.
        model (nn.Module): What was traced, in eval mode.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        example (Tensor): An input.
    """
    for mark in marks(graph, of_weights=False):
        name = mark.input[0]
        if name not in graph.constants and _is_fixed(graph, name):
            value = _seen_by(quantizers[number_of(mark)], model, example)
            graph.constants[name] = numpy_helper.from_array(
                value.cpu().numpy())


def _is_fixed(graph: Graph, name: str) -> bool:
    """Whether a tensor is made of constants alone, quantizers aside."""
    node = graph.producer(name)
    if name in graph.constants or node is None:
        return name in graph.constants
    return node.op_type != MARK and all(
        _is_fixed(graph, each) for each in node.input if each)


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
