"""A trained model as a float ONNX model, and encodings that name its tensors.

Encodings are Qualcomm AIMET's, as its converters for QNN take them, in version
0.6.1 of AIMET's "Encoding Format Specification": a tensor's values are
``(q + offset) * scale`` with q of ``0`` to ``2^bitwidth - 1``. The float
weights have these values already, so that a converter finds FPQ's integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from .build import TracedModel
from .folding import fold_batch_norm
from .integers import IntegerGrid, integer_grid
from .lowering import (
    find_weights,
    fold_weights,
    marks,
    number_of,
)
from .rewriting import (
    add_constant,
    finish_graph,
    only_reader,
    read_graph,
    replace_nodes,
)

VERSION = '0.6.1'
LEAST_BITS = 4
"""The specification's: no encoding has fewer."""

Encodings = dict[str, Any]


def build_encodings(traced: TracedModel) -> tuple[ir.Model, Encodings]:
    """Build the float ONNX model of a traced one, and its encodings.

    Batch norms are in the weights, as in :func:`.folding.fold_batch_norm`.
    What enters a quantized layer has an encoding. Where others read the same
    tensor an Identity parts them, for these read it in float.

    Args:
        traced (TracedModel): The traced model.

    Returns:
        tuple: The checked ir.Model, and the content of the encodings' file.

    Raises:
        ValueError: Naming a quantizer with fewer than 4 bits, or one of
            features with a narrow range.
    """
    names, quantizers = list(traced.quantizers), list(
        traced.quantizers.values())
    for name, quantizer in traced.quantizers.items():
        if quantizer.num_bits < LEAST_BITS:
            raise ValueError(
                f'not exported: {name} has {quantizer.num_bits} bits, and '
                f"AIMET's encodings have {LEAST_BITS} or more")
    built = read_graph(traced.graph)
    graph = built.graph
    fold_weights(graph, traced.model, quantizers,
                 traced.example[:traced.batch_size or 2])
    weights = find_weights(graph, quantizers, names, traced.target)
    fold_batch_norm(graph, weights)
    parameters = []
    for value, grid in weights.items():
        assert value is not None
        values = (grid.weight - grid.along_axis(
            grid.zero_point)) * grid.along_axis(grid.step)
        stored = add_constant(graph, values.astype(np.float32))
        value.replace_all_uses_with(stored)
        parameters.append((stored, grid))
    features = []
    for mark in marks(graph, of_weights=False):
        number = number_of(mark)
        grid = integer_grid(quantizers[number], target=traced.target)
        if grid.low == -grid.high:
            raise ValueError(
                f'not exported: {names[number]} has a narrow range, and an '
                'encoding clips at 2^bits integers: train it without '
                'narrow_range')
        features.append((_own_tensor(graph, mark), grid))
    finish_graph(built)
    # It gives the tensors their names.
    return built, {
        'version': VERSION,
        'activation_encodings': _encoded(features),
        'param_encodings': _encoded(parameters),
        'quantizer_args': {
            'activation_bitwidth': _most_bits(features),
            'param_bitwidth': _most_bits(parameters),
            'dtype': 'int',
            'is_symmetric': 'True',
            'per_channel_quantization': 'True',
            'quant_scheme': 'training_range_learning_with_tf_init',
        },
    }


def _own_tensor(graph: ir.Graph, mark: ir.Node) -> ir.Value:
    """The tensor that only the layer behind a mark reads; no mark is left."""
    read, made = mark.inputs[0], mark.outputs[0]
    assert read is not None
    if only_reader(read) is mark:
        made.replace_all_uses_with(read)
        graph.remove(mark, safe=True)
        return read
    apart = ir.node('Identity', [read])
    replace_nodes(graph, [mark], [apart])
    return apart.outputs[0]


def _bits(grid: IntegerGrid) -> int:
    return (grid.high - grid.low).bit_length()


def _most_bits(found: list[tuple[ir.Value, IntegerGrid]]) -> int:
    return max((_bits(grid) for _, grid in found), default=0)


def _encoded(found: list[tuple[ir.Value, IntegerGrid]]
             ) -> dict[str, list[dict[str, Any]]]:
    return {str(value.name): _encodings_of(grid) for value, grid in found}


def _encodings_of(grid: IntegerGrid) -> list[dict[str, Any]]:
    """One for each channel with a step of its own.

    An encoding has 2^bits integers. A narrow range is the symmetric one whose
    lowest integer no value has.
    """
    bits, encodings = _bits(grid), []
    low = grid.low - (grid.low == -grid.high)
    for step, zero_point in zip(np.atleast_1d(grid.step),
                                np.atleast_1d(grid.zero_point)):
        scale, offset = float(step), int(low - zero_point)
        encodings.append({
            'bitwidth': bits,
            'dtype': 'int',
            'is_symmetric': str(offset == -2**(bits - 1)),
            'max': (offset + 2**bits - 1) * scale,
            'min': offset * scale,
            'offset': offset,
            'scale': scale,
        })
    return encodings


def with_encodings(model: ir.Model, encodings: Mapping[str, Any]) -> ir.Model:
    """The model that computes with what its encodings say of its features.

    Args:
        model (ir.Model): What :func:`build_encodings` gave.
        encodings (Mapping): The same.

    Returns:
        ir.Model: A copy in which each tensor with an encoding is rounded to
        it. Weights are so already.
    """
    simulated = ir.from_proto(ir.to_proto(model))
    graph = simulated.graph
    named = {value.name: value for value in [
        *graph.inputs, *(each for node in graph for each in node.outputs)]}
    for name, (encoding, ) in encodings['activation_encodings'].items():
        value = named[name]
        scale, low = encoding['scale'], encoding['offset']
        high = low + 2**encoding['bitwidth'] - 1
        constants = [add_constant(graph, np.array(each, np.float32))
                     for each in (scale, low, high)]
        x, nodes = value, []
        for kind, others in (('Div', constants[:1]), ('Round', []),
                             ('Clip', constants[1:]), ('Mul', constants[:1])):
            nodes.append(ir.node(kind, [x, *others]))
            x = nodes[-1].outputs[0]
        value.replace_all_uses_with(x)
        nodes[0].replace_input_with(0, value)
        maker = value.producer()
        if maker is None:
            graph.insert_before(graph[0], nodes)
        else:
            graph.insert_after(maker, nodes)
    return simulated
