"""Batch norm goes into the steps of the weight before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from .graph import Graph
from .integers import Integers


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
