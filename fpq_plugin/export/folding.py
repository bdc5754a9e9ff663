"""Batch norms and biases in integer arithmetic.

onnxruntime computes a layer on integers only where nothing but integers
enters it: the batch norm after a convolution goes into the steps of its
weight, and a bias becomes integers as well, where that costs no accuracy.
The integers of a weight stay those of the training, but for a -128 that has
no opposite, where the caller lets it be -127.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..quantizers import Quantizer
from ..targets import STANDARD, Target
from .features import mark_before
from .integers import IntegerGrid, integer_grid
from .lowering import MARK, Weights, array_of, is_constant, layer_of, number_of
from .rewriting import add_constant, only_reader, replace_nodes


def fold_batch_norm(graph: ir.Graph, weights: Weights,
                    clips: bool = False) -> int:
    """Fold batch norms into the convolutions before them.

    ``BN(conv(x, q s) + b) = conv(x, q (s |k|) sign(k)) + ...`` with k =
    gamma / sigma: the integers q stay those of training, the step of an
    output channel takes |k|. A channel of negative k needs -q, one of k = 0
    needs q = 0. Where layers share the weight the batch norm stays, and where
    -q does not fit the type (of the lowest integer of a signed one), unless
    ``clips`` says otherwise.

    Args:
        graph (ir.Graph): The graph, changed in place.
        weights (Weights): The quantized weights, their grids changed in
            place.
        clips (bool): Whether -q becomes the highest integer instead, where
            it does not fit. Defaults to False.

    Returns:
        int: How many weights are so one step from the trained ones.
    """
    moved = 0
    for conv in [node for node in graph if node.op_type == 'Conv']:
        weight = conv.inputs[1]
        norm = only_reader(conv.outputs[0])
        if weight in weights and norm is not None and (
                norm.op_type == 'BatchNormalization'
                and only_reader(weight) is conv):
            moved += _fold(graph, conv, norm, weights[weight], clips)
    return moved


def _fold(graph: ir.Graph, conv: ir.Node, norm: ir.Node, grid: IntegerGrid,
          clips: bool) -> int:
    parts = [array_of(value) for value in norm.inputs[1:]]
    if any(part is None for part in parts) or grid.zero_point.any():
        return 0
    gamma, beta, mean, variance = (part.astype(np.float64) for part in parts)
    gain = gamma / np.sqrt(variance + norm.attributes['epsilon'].as_float())
    # A step must be positive, also where the channel is constant.
    shut = grid.step * np.abs(gain) < np.finfo(np.float32).tiny
    sign = np.where(shut, 0, np.sign(gain)).astype(np.int64)
    weight = grid.weight * sign.reshape(-1, *[1] * (grid.weight.ndim - 1))
    step = (grid.step * np.where(shut, 1, np.abs(gain))).astype(np.float32)
    high = weight > grid.type.high
    if weight.min() < grid.type.low or (high.any() and not clips):
        return 0
    weight = np.where(high, grid.type.high, weight)
    bias: Any = array_of(conv.inputs[2]) if len(conv.inputs) > 2 else 0.0
    shift = ((bias - mean) * gain + beta).astype(np.float32)
    grid.weight, grid.step, grid.axis = weight, step, 0
    grid.zero_point = np.zeros(step.shape, np.int64)
    replace_nodes(graph, [conv, norm], [
        ir.node('Conv', [*conv.inputs[:2], add_constant(graph, shift)],
                conv.attributes)])
    return int(high.sum())


# Of the step that follows: what rounding a bias may shift a value by.
LARGEST_SHIFT = 1 / 256
# Sums of products that are added have room beside it in int32.
LARGEST_BIAS = 2**30
# Why a bias is float that could be integers.
CHOSEN = 'integers cost accuracy'
# What onnxruntime moves a QuantizeLinear back over, into the layer before.
PASSED = ('Relu', 'Clip', 'MaxPool')


@dataclass(frozen=True)
class Bias:
    """What became of the bias of a layer with a quantized input.

    Attributes:
        layer (str): The layer's name.
        reason (str): Why it stays float; empty for one of integers.
    """

    layer: str
    reason: str


def lower_biases(graph: ir.Graph,
                 weights: Weights,
                 quantizers: Sequence[Quantizer],
                 names: Sequence[str],
                 integer_biases: bool,
                 target: Target = STANDARD) -> list[Bias]:
    """Make biases integers for 8-bit kernels, or keep them float.

    An 8-bit kernel takes the bias as integers, in steps of input times
    weight. Such a step is far below that of an 8-bit output, and the bias
    becomes int32. At fewer bits it may not be. Where the target's layers are
    to end in QuantizeLinear, a bias is int32 nevertheless if it fits, and
    the comparison decides. A float one is added after the layer, since
    onnxruntime 1.24 rounds what is left inside (a float weight too). Other
    engines get it inside.

    Args:
        graph (ir.Graph): The graph with features' quantizers as marks,
            changed in place.
        weights (Weights): The quantized weights.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        names (Sequence[str]): Their names.
        integer_biases (bool): False makes all of them float.
        target (Target): What is to take them. Defaults to STANDARD.

    Returns:
        list[Bias]: The bias of each Conv, ConvTranspose and Gemm whose input
        is quantized, in the order of the graph.
    """
    found = []
    for node in list(graph):
        if node.op_type not in ('Conv', 'ConvTranspose', 'Gemm') or (
                len(node.inputs) < 3 or not is_constant(node.inputs[2])):
            continue
        source = mark_before(node.inputs[0])
        if source is None:
            continue
        layer = layer_of(node, names)
        after = _marks_after(node.outputs[0])
        bias = np.array(array_of(node.inputs[2]))
        stored: tuple | str
        if not target.integer_biases:
            stored = f'{target.title} takes none'
        elif after or _may_end_in_float(node, target):
            weight = weights.get(node.inputs[1])
            if target.ends_quantized and weight is not None and (
                    only_reader(node.inputs[1]) is node):
                _make_room(bias, weight, integer_grid(
                    quantizers[number_of(source)], target=target))
            stored = _bias_integers(
                bias, weight, target, *(
                    integer_grid(quantizers[number_of(mark)], target=target)
                    for mark in (source, *after)))
        else:
            stored = 'the output is not quantized again'
        if not isinstance(stored, str) and not integer_biases:
            stored = CHOSEN
        if isinstance(stored, tuple):
            _store_bias(graph, node, *stored)
        elif after and not target.biases_inside:
            _add_after(graph, node, bias)
        found.append(Bias(layer, stored if isinstance(stored, str) else ''))
    return found


def _marks_after(value: ir.Value) -> list[ir.Node]:
    """The marks that read a value, if need be through PASSED."""
    found = []
    for node in value.consumers():
        if node.op_type == MARK:
            found.append(node)
        elif node.op_type in PASSED:
            found += _marks_after(node.outputs[0])
    return found


def _may_end_in_float(node: ir.Node, target: Target) -> bool:
    """Whether integers in a layer do without a quantized output."""
    kind = 'linear' if node.op_type == 'Gemm' else 'conv'
    return bool(target.ends_quantized) and kind not in target.ends_quantized


def _make_room(bias: np.ndarray, weight: IntegerGrid,
               before: IntegerGrid) -> None:
    """Let a channel's bias fit where its weights are next to nothing.

    A batch norm that has all but shut a channel leaves it a bias and a tiny
    step. The step grows by a power of two, and the weights, which the bias
    outweighs by far, are rounded to it.
    """
    if weight.axis != 0:
        return
    integers = np.abs(bias.astype(np.float64) / (before.step * weight.step))
    more = np.ceil(np.log2(np.maximum(integers / LARGEST_BIAS, 1)))
    if more.any() and np.isfinite(more).all():
        factor = np.exp2(more)
        weight.weight = np.round(
            weight.weight / weight.along_axis(factor)).astype(np.int64)
        weight.step = (weight.step * factor).astype(np.float32)


def _bias_integers(
        bias: np.ndarray, weight: IntegerGrid | None, target: Target,
        before: IntegerGrid,
        *after: IntegerGrid) -> tuple[np.ndarray, np.ndarray] | str:
    """The bias as int32 (C,) and their steps (C,), or why there are none."""
    if weight is None:
        return 'the weight is float'
    if not target.narrow_biases and (weight.type.high < 127 or not all(
            grid.fills_type() for grid in (before, *after))):
        return 'weight, input or output has fewer than 8 bits'
    step = np.atleast_1d(before.step * weight.step)
    # The groups of a transposed convolution share their steps.
    step = np.tile(step, len(bias) // len(step))
    integers = np.round(bias.astype(np.float64) / step)
    if np.abs(integers).max() > LARGEST_BIAS:
        return 'it does not fit in int32'
    if not target.ends_quantized and (
            step.max() / 2 > LARGEST_SHIFT * min(grid.step for grid in after)):
        return 'its step is too coarse for the output'
    return integers.astype(np.int32), step.astype(np.float32)


def _store_bias(graph: ir.Graph, node: ir.Node, integers: np.ndarray,
                step: np.ndarray) -> None:
    dequantize = ir.node(
        'DequantizeLinear',
        [add_constant(graph, integers), add_constant(graph, step)],
        dict(axis=0))
    graph.insert_before(node, dequantize)
    node.replace_input_with(2, dequantize.outputs[0])


def _add_after(graph: ir.Graph, node: ir.Node, bias: np.ndarray) -> None:
    if node.op_type != 'Gemm':
        # (C,) to (C, 1, 1): as many axes as the kernel has.
        kernel = node.attributes['kernel_shape'].as_ints()
        bias = bias.reshape(-1, *[1] * len(kernel))
    bare = ir.node(node.op_type, node.inputs[:2], node.attributes)
    replace_nodes(graph, [node], [
        bare, ir.node('Add', [bare.outputs[0], add_constant(graph, bias)])])
