"""Biases that onnxruntime would round are added after their layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from ..quantizers import Quantizer
from .graph import Graph
from .integers import Integers, integers
from .lower import MARK, number_of

# Of the step that follows: what rounding a bias may shift a value by.
LARGEST_SHIFT = 1 / 256


def keep_biases(graph: Graph, weights: dict[str, Integers],
                quantizers: Sequence[Quantizer]) -> None:
    """Add a bias after its layer where rounding it would be seen.

    onnxruntime 1.24 rounds the bias of a layer between DequantizeLinear and
    QuantizeLinear to whole steps of input times weight. Its 8-bit kernels
    need that, and such a step is far below that of an 8-bit output; at fewer
    bits there is no kernel, and it is not. A float weight it would round too.

    Args:
        graph (Graph): The graph with features' quantizers as marks, changed
            in place.
        weights (dict[str, Integers]): The quantized weights, by tensor.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
    """
    for node in list(graph.nodes):
        if node.op_type not in ('Conv', 'ConvTranspose', 'Gemm') or (
                len(node.input) < 3 or node.input[2] not in graph.constants):
            continue
        source = graph.producer(node.input[0])
        after = _quantizers_after(graph, node.output[0])
        if source is None or source.op_type != MARK or not after:
            continue
        if not _has_kernel(weights.get(node.input[1]),
                           integers(quantizers[number_of(source)]),
                           [integers(quantizers[n]) for n in after]):
            _add_after(graph, node)


def _quantizers_after(graph: Graph, name: str) -> list[int]:
    """Quantizers that take a tensor, if need be through activations."""
    found = []
    for node in graph.consumers(name):
        if node.op_type == MARK:
            found.append(number_of(node))
        elif node.op_type in ('Relu', 'Clip'):
            found += _quantizers_after(graph, node.output[0])
    return found


def _has_kernel(weight: Integers | None, before: Integers,
                after: list[Integers]) -> bool:
    """Whether an 8-bit kernel can take a layer, its bias rounded finely."""
    if weight is None:
        return False
    shift = (before.step * weight.step).max() / 2
    eight_bits = all(kind.is_full() for kind in (before, *after)) and (
        weight.carrier.high > 7)
    return eight_bits and shift <= LARGEST_SHIFT * after[0].step


def _add_after(graph: Graph, node: onnx.NodeProto) -> None:
    bias = graph.value(node.input[2])
    if node.op_type != 'Gemm':
        # (C,) to (C, 1, 1): as many axes as the kernel has.
        kernel = next(a.ints for a in node.attribute
                      if a.name == 'kernel_shape')
        bias = bias.reshape(-1, *[1] * len(kernel))
    out = node.output[0]
    node.output[0] = graph.new_name()
    del node.input[2]
    graph.add('Add', [node.output[0], graph.add_constant(np.array(bias))], out)
