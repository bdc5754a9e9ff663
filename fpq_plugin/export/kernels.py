"""Which layers onnxruntime computes on integers, by its own optimized graph.

onnxruntime rewrites a file as it opens it. A quantized weight that is still
made float there belongs to a layer in float.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir

from .kernel_report import Kernels
from .lowering import LAYER, array_of, is_constant

LAYERS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
INTEGER_LAYERS = ('QLinearConv', 'QGemm', 'QLinearMatMul',
                  'MatMulIntegerToFloat', 'MatMulInteger', 'ConvInteger')


def find_kernels(model: ir.Model, content: bytes) -> Kernels:
    """Look at what onnxruntime makes of a file on this machine's CPU.

    Args:
        model (ir.Model): The finished model, as it was built.
        content (bytes): The content of its file.

    Returns:
        Kernels: What is computed on integers.
    """
    optimized = optimized_graph(content)
    in_float = {node.input[0] for node in optimized.node
                if node.op_type == 'DequantizeLinear'}
    layers, risky = [], 0
    for node in model.graph:
        weight = _weight_of(node)
        if weight is not None:
            reason = _reason(node, weight) if weight.name in in_float else ''
            layers.append((weight.meta[LAYER], reason))
            risky += not reason and _columns(node, weight) % 32 > 16
    others = Counter(
        node.op_type for node in optimized.node
        if node.op_type.startswith('QLinear')
        and node.op_type not in INTEGER_LAYERS)
    return Kernels(tuple(layers), tuple(sorted(others.items())),
                   risky=risky)


def optimized_graph(content: bytes) -> onnx.GraphProto:
    """The graph that onnxruntime runs.

    Args:
        content (bytes): The content of an ONNX file.

    Returns:
        onnx.GraphProto: The graph.
    """
    import onnxruntime

    with TemporaryDirectory() as folder:
        path = Path(folder) / 'optimized.onnx'
        options = onnxruntime.SessionOptions()
        # A graph that is for this machine alone is what is asked for.
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            content, options, providers=['CPUExecutionProvider'])
        return onnx.load(path).graph


def _weight_of(node: ir.Node) -> ir.Value | None:
    """The integers of a layer's weight, None for another node."""
    if node.op_type in LAYERS:
        for value in node.inputs[:2]:
            maker = value.producer() if value is not None else None
            if maker is not None and maker.inputs[0] is not None and (
                    LAYER in maker.inputs[0].meta):
                return maker.inputs[0]
    return None


def _columns(node: ir.Node, weight: ir.Value) -> int:
    """Of the matrix product that a layer is: outputs, of each group."""
    shape = array_of(weight).shape
    if node.op_type == 'Conv':
        group = node.attributes.get('group')
        return shape[0] // (group.as_int() if group else 1)
    transposed = node.attributes.get('transB')
    return shape[0 if transposed and transposed.as_int() else -1]


def _reason(node: ir.Node, weight: ir.Value) -> str:
    """Why a layer is likely to be computed in float."""
    assert weight.const_value is not None
    kind = weight.const_value.dtype.name
    makers = [value.producer() for value in node.inputs if value is not None]
    quantized = [maker is not None and maker.op_type == 'DequantizeLinear'
                 for maker in makers]
    readers = node.outputs[0].consumers()
    behind = [reader.op_type for reader in readers]
    if node.op_type == 'ConvTranspose':
        return 'there is no kernel for ConvTranspose'
    if kind not in ('INT8', 'UINT8'):
        return f'the weight is {kind}'
    if not all(quantized[:2]):
        return 'the input is not quantized'
    if 'QuantizeLinear' in behind and len(behind) > 1:
        return 'the output is not read by one quantizer alone'
    if behind == ['Add'] and any(map(is_constant, readers[0].inputs)):
        return 'the bias is float'
    if behind == ['BatchNormalization']:
        return 'its batch norm cannot be multiplied into its weights'
    if node.op_type == 'Conv' and 'QuantizeLinear' not in behind:
        return 'the output is not quantized'
    if not all(quantized):
        return 'the bias is float'
    return 'onnxruntime has none for it'
