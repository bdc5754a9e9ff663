"""Batch norm goes into the steps of the weight before it."""

from __future__ import annotations

import numpy as np
import onnx

from .graph import Graph
from .integers import Integers


def fold_batch_norm(graph: Graph, weights: dict[str, Integers]) -> int:
    """Fold batch norms into the convolutions before them, where exact.

    ``BN(conv(x, q s) + b) = conv(x, q (s |k|) sign(k)) + ...`` with k =
    gamma / sigma: the integers q stay those of training, the step of an
    output channel takes |k|. A channel of negative k needs -q, one of k = 0
    needs q = 0. Where -q does not fit the type (the lowest integer of a
    signed one), the batch norm stays.

    Args:
        graph (Graph): The graph, changed in place.
        weights (dict[str, Integers]): The quantized weights, by tensor.

    Returns:
        int: How many batch norms stay after a quantized convolution.
    """
    stay = 0
    for conv in [n for n in graph.nodes if n.op_type == 'Conv']:
        numbers = weights.get(conv.input[1])
        norm = graph.only_consumer(conv.output[0])
        if numbers is None or norm is None or (
                norm.op_type != 'BatchNormalization'):
            continue
        alone = graph.only_consumer(conv.input[1]) is conv
        if not (alone and _fold(graph, conv, norm, numbers)):
            stay += 1
    return stay


def _fold(graph: Graph, conv: onnx.NodeProto, norm: onnx.NodeProto,
          numbers: Integers) -> bool:
    parts = [graph.value(name) for name in norm.input[1:]]
    if any(part is None for part in parts):
        return False
    gamma, beta, mean, variance = (part.astype(np.float64) for part in parts)
    epsilon = next(a.f for a in norm.attribute if a.name == 'epsilon')
    factor = gamma / np.sqrt(variance + epsilon)
    sign = np.sign(factor).astype(np.int64)
    signs = sign.reshape(-1, *[1] * (numbers.weight.ndim - 1))
    zero_points = np.broadcast_to(numbers.zero_point, factor.shape)
    weight = signs * (numbers.weight - zero_points.reshape(signs.shape))
    if (zero_points != 0).any() and (sign < 1).any():
        return False
    weight += zero_points.reshape(signs.shape)
    if not numbers.carrier.holds(int(weight.min()), int(weight.max())):
        return False
    bias = graph.value(conv.input[2]) if len(conv.input) > 2 else 0.0
    # A step must be positive, also where the channel is constant.
    steps = numbers.step * np.where(sign == 0, 1, np.abs(factor))
    steps = steps.astype(np.float32)
    if not (steps >= np.finfo(np.float32).tiny).all():
        return False
    numbers.weight, numbers.step = weight, steps
    numbers.zero_point, numbers.axis = zero_points, 0
    shift = graph.add_constant(
        ((bias - mean) * factor + beta).astype(np.float32))
    conv.input[:] = [*conv.input[:2], shift]
    conv.output[0] = norm.output[0]
    graph.nodes.remove(norm)
    return True
