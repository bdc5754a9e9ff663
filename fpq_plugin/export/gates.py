"""A quantized hard sigmoid becomes a sum, for an engine without a kernel.

``clip(a x + b, 0, 1)`` rounded to multiples of 1/255 is ``x + b / a`` rounded
to multiples of ``1/255 / a``: uint8 ends at 0 and 255, where the clip does.
The integers are the same, so that the next node reads them with step 1/255.
onnxruntime has a kernel for the sum of two quantized tensors.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .lowering import array_of
from .rewriting import add_constant, only_reader, replace_nodes

# What ONNX takes for HardSigmoid's, if they are not there.
ALPHA, BETA = 0.2, 0.5


def lower_gates(graph: ir.Graph) -> None:
    """Make each quantized HardSigmoid of a quantized tensor a sum.

    Args:
        graph (ir.Graph): The graph, after
            :func:`~.features.lower_features`; changed in place.
    """
    for node in list(graph):
        if node.op_type != 'HardSigmoid':
            continue
        (x, ), quantize = node.inputs, only_reader(node.outputs[0])
        if quantize is None or not _reads_integers(x) or not _ends_at_one(
                quantize):
            continue
        step, zero_point = (array_of(v) for v in quantize.inputs[1:])
        alpha, beta = (
            node.attributes[name].as_float() if name in node.attributes
            else usual for name, usual in (('alpha', ALPHA), ('beta', BETA)))
        zero = quantize.inputs[2]
        added = ir.node('DequantizeLinear', [
            add_constant(graph, np.ones_like(zero_point)),
            add_constant(graph, np.float32(beta / alpha)), zero])
        total = ir.node('Add', [x, added.outputs[0]])
        replace_nodes(graph, [node, quantize], [
            added, total, ir.node('QuantizeLinear', [
                total.outputs[0],
                add_constant(graph, np.float32(step / alpha)), zero])])


def _reads_integers(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    return maker is not None and maker.op_type == 'DequantizeLinear'


def _ends_at_one(node: ir.Node) -> bool:
    """Whether a node makes 0 to 1 the integers of uint8, from end to end."""
    if node.op_type != 'QuantizeLinear' or len(node.inputs) < 3:
        return False
    step, zero_point = (array_of(value) for value in node.inputs[1:])
    return bool(zero_point.dtype == np.uint8 and zero_point.ndim == 0
                and zero_point == 0 and step == np.float32(1 / 255))
