"""Shapes that a trace computes at run time become constants.

Only the batch size is free, so nearly all that a graph computes from the
shapes of its tensors is the same for every batch: the channels that a Slice
takes, the height and width that a Reshape makes, and what a Pad adds, which
torch computes of constants. :func:`fix_shapes` runs the graph on batches of
two sizes, stores what is the same in both, and lets each Reshape whose result
differs in one axis find that axis by itself.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from .images import some_images
from .lowering import MARK, is_constant
from .rewriting import add_constant
from .tracing import INPUT, TRACED_SIZES


def fix_shapes(model: ir.Model, example: Tensor,
               batch_size: int | None = None) -> None:
    """Store what a graph computes from shapes, where it is always the same.

    Args:
        model (ir.Model): The traced model, with or without marks. Changed in
            place.
        example (Tensor): Images, (N, ...), any number of them.
        batch_size (int, optional): The model's batch size. Defaults to None,
            a free one.
    """
    graph = model.graph
    computed = _computed_from_shapes(graph)
    if not computed:
        return
    reshapes = [node for node in graph
                if node.op_type == 'Reshape' and node.inputs[1] in computed]
    sizes = ((TRACED_SIZES[0], TRACED_SIZES[-1]) if batch_size is None
             else (batch_size, ))
    runs = _run(model, computed, reshapes, [
        some_images(example, size) for size in sizes])
    for number, value in enumerate(computed):
        arrays = [np.asarray(run[number]) for run in runs]
        if arrays[0].ndim < 2 and not value.is_graph_output() and (
                np.array_equal(arrays[0], arrays[-1])):
            value.replace_all_uses_with(add_constant(graph, arrays[0]))
    for number, node in enumerate(reshapes, len(computed)):
        shape = _shape_of_any_batch(runs[0][number], runs[-1][number])
        if shape is not None and not is_constant(node.inputs[1]):
            node.replace_input_with(1, add_constant(graph, shape))
    # A tensor whose shape nothing needs has a reader less.
    RemoveUnusedNodesPass()(model)


def _computed_from_shapes(graph: ir.Graph) -> list[ir.Value]:
    """All that depends on the shapes of tensors and on nothing in them."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type in ('Shape', 'Size') or (
                node.op_type != MARK and not _has_branches(node)
                and _are_of_shapes(inputs, found)):
            found.update((value, None) for value in node.outputs
                         if value.name)
    return list(found)


def _are_of_shapes(values: list[ir.Value],
                   found: dict[ir.Value, None]) -> bool:
    """Whether values are shapes and constants, or whole numbers alone."""
    if any(value in found for value in values):
        return all(value in found or is_constant(value) for value in values)
    return bool(values) and all(
        is_constant(value) and value.dtype == ir.DataType.INT64
        for value in values)


def _has_branches(node: ir.Node) -> bool:
    """Whether a node has graphs inside, which may read any tensor."""
    return any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
               for each in node.attributes.values())


def _run(model: ir.Model, values: list[ir.Value], reshapes: list[ir.Node],
         batches: list[Tensor]) -> list[list[np.ndarray]]:
    """Values, and the shapes of what each Reshape makes, for each batch."""
    import onnxruntime

    proto = ir.to_proto(model)
    nodes, outputs = proto.graph.node, proto.graph.output
    for node in nodes:
        if node.op_type == MARK:
            node.CopyFrom(onnx.helper.make_node(
                'Identity', node.input, node.output))
    names = [str(value.name) for value in values]
    for number, reshape in enumerate(reshapes):
        names.append(f'shape of {number}')
        nodes.append(onnx.helper.make_node(
            'Shape', [str(reshape.outputs[0].name)], names[-1:]))
    del outputs[:]
    outputs.extend(onnx.ValueInfoProto(name=name) for name in names)
    needed = ir.from_proto(proto)
    RemoveUnusedNodesPass()(needed)
    options = onnxruntime.SessionOptions()
    # It runs twice: to make it faster takes longer.
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(needed).SerializeToString(), options,
        providers=['CPUExecutionProvider'])
    return [session.run(names, {INPUT: x.numpy()}) for x in batches]


def _shape_of_any_batch(first: np.ndarray,
                        second: np.ndarray) -> np.ndarray | None:
    """A shape with -1 for the one axis that differs; None if more do.

    A Reshape leaves no choice: where all other axes are fixed, -1 is what
    the graph computed, or there was no such shape.
    """
    free = np.flatnonzero(first != second)
    if len(free) > 1 or not first.all():
        return None
    shape = first.copy()
    shape[free] = -1
    return shape
