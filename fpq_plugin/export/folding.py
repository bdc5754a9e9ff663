"""Batch norms and biases in integer arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from ..quantizers import Quantizer
from .graph import Graph
from .integers import Integers, integers
from .lowering import MARK, number_of


def fold_batch_norm(graph: Graph, weights: dict[str, Integers]) -> None:
    """Fold batch norms into the convolutions before them, where exact.

    ``BN(conv(x, q s) + b) = conv(x, q (s |k|) sign(k)) + ...`` with k =
    gamma / sigma: the integers q stay those of training, the step of an
    output channel takes |k|. A channel of negative k needs -q, one of k = 0
    needs q = 0. Where -q does not fit the type (the lowest integer of a
    signed one), or layers share the weight, the batch norm stays.

    Args:
        graph (Graph): The graph, changed in place.
        weights (dict[str, Integers]): The quantized weights, by tensor.
    """
    for conv in [n for n in graph.nodes if n.op_type == 'Conv']:
        numbers = weights.get(conv.input[1])
        norm = graph.only_consumer(conv.output[0])
        if numbers is None or norm is None or (
                norm.op_type != 'BatchNormalization'):
            continue
        if graph.only_consumer(conv.input[1]) is conv:
            _fold(graph, conv, norm, numbers)


def _fold(graph: Graph, conv: onnx.NodeProto, norm: onnx.NodeProto,
          numbers: Integers) -> None:
    parts: list[Any] = [graph.value(name) for name in norm.input[1:]]
    if any(part is None for part in parts) or numbers.zero_point.any():
        return
    gamma, beta, mean, variance = (part.astype(np.float64) for part in parts)
    epsilon = next(a.f for a in norm.attribute if a.name == 'epsilon')
    gain = gamma / np.sqrt(variance + epsilon)
    sign = np.sign(gain).astype(np.int64)
    weight = numbers.weight * sign.reshape(-1, *[1] *
                                           (numbers.weight.ndim - 1))
    # A step must be positive, also where the channel is constant.
    step = (numbers.step * np.where(sign, np.abs(gain), 1)).astype(np.float32)
    fits = numbers.carrier.holds(int(weight.min()), int(weight.max()))
    if not fits or step.min() < np.finfo(np.float32).tiny:
        return
    bias: Any = graph.value(conv.input[2]) if len(conv.input) > 2 else 0.0
    shift = graph.add_constant(
        ((bias - mean) * gain + beta).astype(np.float32))
    numbers.weight, numbers.step, numbers.axis = weight, step, 0
    numbers.zero_point = np.zeros(step.shape, np.int64)
    conv.input[:] = [*conv.input[:2], shift]
    conv.output[0] = norm.output[0]
    graph.nodes.remove(norm)


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
