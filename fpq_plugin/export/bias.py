"""Biases of layers whose output is quantized again."""

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
# What onnxruntime moves a QuantizeLinear back over, into the layer before.
PASSED = ('Relu', 'Clip', 'MaxPool')


def lower_biases(graph: Graph, weights: dict[str, Integers],
                 quantizers: Sequence[Quantizer], whole: bool) -> None:
    """Make biases integers for 8-bit kernels, or add them in float.

    An 8-bit kernel takes the bias in whole steps of input times weight. Such
    a step is far below that of an 8-bit output, and the bias becomes int32.
    At fewer bits it is not, and there is no kernel: the bias is added after
    the layer, since onnxruntime 1.24 rounds what is left inside (a float
    weight too).

    Args:
        graph (Graph): The graph with features' quantizers as marks, changed
            in place.
        weights (dict[str, Integers]): The quantized weights, by tensor.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        whole (bool): False adds all of them in float.
    """
    for node in list(graph.nodes):
        if node.op_type not in ('Conv', 'ConvTranspose', 'Gemm') or (
                len(node.input) < 3 or node.input[2] not in graph.constants):
            continue
        source = graph.producer(node.input[0])
        after = _quantizers_after(graph, node.output[0])
        if source is None or source.op_type != MARK or not after:
            continue
        bias = np.array(graph.value(node.input[2]))
        steps = _whole_steps(
            bias, weights.get(node.input[1]),
            integers(quantizers[number_of(source)]),
            [integers(quantizers[n]) for n in after]) if whole else None
        if steps is None:
            _add_after(graph, node, bias)
        else:
            _store_integers(graph, node, *steps)


def _quantizers_after(graph: Graph, name: str) -> list[int]:
    """Quantizers that take a tensor, if need be through PASSED."""
    found = []
    for node in graph.consumers(name):
        if node.op_type == MARK:
            found.append(number_of(node))
        elif node.op_type in PASSED:
            found += _quantizers_after(graph, node.output[0])
    return found


def _whole_steps(
        bias: np.ndarray, weight: Integers | None, before: Integers,
        after: list[Integers]) -> tuple[np.ndarray, np.ndarray] | None:
    """The bias as integers times steps, None if that is too coarse."""
    if weight is None or weight.carrier.high < 127 or not all(
            kind.is_full() for kind in (before, *after)):
        return None
    step = np.broadcast_to(before.step * weight.step, bias.shape)
    whole = np.round(bias.astype(np.float64) / step)
    if step.max() / 2 > LARGEST_SHIFT * min(kind.step for kind in after) or (
            np.abs(whole).max() >= 2**31):
        return None
    return whole.astype(np.int32), step.astype(np.float32)


def _store_integers(graph: Graph, node: onnx.NodeProto, whole: np.ndarray,
                    step: np.ndarray) -> None:
    node.input[2] = graph.add(
        'DequantizeLinear',
        [graph.add_constant(whole), graph.add_constant(step)],
        graph.new_name(),
        axis=0)


def _add_after(graph: Graph, node: onnx.NodeProto, bias: np.ndarray) -> None:
    if node.op_type != 'Gemm':
        # (C,) to (C, 1, 1): as many axes as the kernel has.
        kernel = next(a.ints for a in node.attribute
                      if a.name == 'kernel_shape')
        bias = bias.reshape(-1, *[1] * len(kernel))
    out = node.output[0]
    node.output[0] = graph.new_name()
    del node.input[2]
    graph.add('Add', [node.output[0], graph.add_constant(bias)], out)
