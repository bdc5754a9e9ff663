"""torch traces the model: fake quantizers are marks, the batch size is free.

While torch traces, each fake quantizer is replaced by a node
``fpq::FakeQuantize`` with the quantizer's number, so that the trace holds
where values are quantized and nothing of how.

A trace runs the model once, and what Python computes on the way becomes a
constant of the graph: the batch size too, where the model makes an ``int`` of
it. :func:`trace_any_batch` therefore compares traces of other batches.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.autograd import Function

from .._compat.versions import onnx_tracer_options
from ..quantizers import Quantizer
from .images import WAY_OUT, some_images
from .lowering import MARK, array_of, is_constant
from .outputs import INPUT, OUTPUT, FlatModel, named_tensors
from .rewriting import add_constant, read_graph

DOMAIN = 'fpq'
# The newest that every supported torch writes.
TRACED_OPSET = 17


class _Mark(Function):
    """Stands for the quantizer ``number`` in the trace."""

    @staticmethod
    def forward(ctx, x: Tensor, number: int) -> Tensor:
        # A new tensor: the tracer drops a function that returns its input.
        return x.clone()

    @staticmethod
    def symbolic(g, x, number: int):
        return g.op(f'{DOMAIN}::{MARK}', x,
                    number_i=number).setType(x.type())


def _mark(number: int, x: Tensor) -> Tensor:
    return _Mark.apply(x, number)


def _identity(x: Tensor) -> Tensor:
    return x


@contextmanager
def _replaced(quantizers: Sequence[Quantizer],
              marked: bool) -> Iterator[None]:
    for number, quantizer in enumerate(quantizers):
        quantizer.forward = (  # type: ignore[method-assign]
            partial(_mark, number) if marked else _identity)
    try:
        yield
    finally:
        for quantizer in quantizers:
            del quantizer.forward


@torch.no_grad()
def trace(model: nn.Module,
          quantizers: Sequence[Quantizer],
          example: Tensor,
          marked: bool = True,
          free: bool = True) -> onnx.ModelProto:
    """Trace ``model`` in eval mode.

    Nothing but the fake quantizers stands for quantization: SFP, CSD and
    calibration leave nothing.

    Args:
        model (nn.Module): Takes one tensor, returns any; in eval mode.
        quantizers (Sequence[Quantizer]): Those of the model. Each call of
            ``quantizers[i]`` becomes one node ``fpq::FakeQuantize`` with the
            attribute ``number = i``.
        example (Tensor): An input, the first axis is the batch.
        marked (bool): False leaves the quantizers out, which gives the
            full-precision model. Defaults to True.
        free (bool): Whether the graph's input and outputs have a free batch
            size. Defaults to True.

    Returns:
        onnx.ModelProto: The graph, its tensors ``input`` and ``output``, or
        several as :func:`.outputs.named_tensors` names them.

    Raises:
        ValueError: If the model returns more than tensors, or torch cannot
            trace it.
    """
    answers = named_tensors(model(example))
    kind = type(model).__name__
    if list(answers) != [OUTPUT]:
        model = FlatModel(model)
    options = onnx_tracer_options()
    if marked:
        options['custom_opsets'] = {DOMAIN: 1}
    if free:
        batched = [name for name, value in answers.items()
                   if value.dim() and len(value) == len(example)]
        options['dynamic_axes'] = {
            name: {0: 'batch'} for name in (INPUT, *batched)}
    content = io.BytesIO()
    with _replaced(quantizers, marked), warnings.catch_warnings():
        # What became a constant is found by comparing traces.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.simplefilter('ignore', UserWarning)
        try:
            torch.onnx.export(
                model, (example, ),
                content,
                opset_version=TRACED_OPSET,
                input_names=[INPUT],
                output_names=list(answers),
                **options)
        except Exception as error:
            raise ValueError(f'not exported: torch cannot trace {kind}: '
                             f'{error}') from error
    return onnx.load_from_string(content.getvalue())


# -- a free batch size ----------------------------------------------------
#
# ``int(windows.shape[0] / 4)`` is a number in the trace, that of the batch it
# was traced with. Traces of other batches, of other images, have another
# number in its place. Where these numbers are ``intercept + slope * batch``,
# the graph computes them (Swin's windows, for one), and so the length of a
# constant that is one number throughout; where not, nothing is exported.

# Two tell what depends on the batch, the third whether a line is right.
TRACED_SIZES = (2, 3, 5)
# There may be no more images than two.
OTHER_CONTRAST = 0.9

# Attributes whose text does not tell them.
_WHOLE = (ir.AttributeType.TENSOR, ir.AttributeType.GRAPH)

Difference = tuple[ir.Node, int, list[np.ndarray]]
"""A node, the number of an input, and that constant in each trace."""


def trace_any_batch(model: nn.Module,
                    quantizers: Sequence[Quantizer],
                    example: Tensor,
                    marked: bool = True,
                    batch_size: int | None = None,
                    known_free: bool = False
                    ) -> tuple[onnx.ModelProto, bool]:
    """Trace a model so that nothing of the traced images stays in it.

    Args:
        model (nn.Module): Takes one tensor, returns any; in eval mode.
        quantizers (Sequence[Quantizer]): As for :func:`trace`.
        example (Tensor): Images, (N, ...), any number of them.
        marked (bool): As for :func:`trace`. Defaults to True.
        batch_size (int, optional): The batch size of the graph. Defaults to
            None, a free one.
        known_free (bool): Whether nothing of the traced images is in the
            trace, as another one has shown: it then is the only one.
            Defaults to False.

    Returns:
        tuple: The graph, and whether it is as torch traced it.

    Raises:
        ValueError: If it depends on the batch or on the images in a way that
            no graph can hold.
    """
    kind = type(model).__name__
    free = batch_size is None
    sizes = TRACED_SIZES if batch_size is None else (batch_size, ) * 3

    def traced(number: int) -> onnx.ModelProto:
        images = some_images(example, sizes[number], sum(sizes[:number]))
        if number and images.is_floating_point():
            # Other images: what is computed of them differs, too.
            images = images * OTHER_CONTRAST
        return trace(model, quantizers, images, marked, free)

    first = traced(0)
    if known_free:
        return first, True
    second = traced(1)
    if first.SerializeToString() == second.SerializeToString():
        return first, True
    graphs = [read_graph(proto) for proto in (first, second)]
    if not _differences(graphs, kind):
        return first, True
    if not free:
        raise ValueError(
            f'not exported: {kind} computes a number of its images in Python, '
            'which is a constant of the trace: compute it by operations of '
            'torch')
    graphs.append(read_graph(traced(2)))
    _compute(graphs[0].graph, _differences(graphs, kind), kind)
    return ir.to_proto(graphs[0]), False


def _differences(models: Sequence[ir.Model], kind: str) -> list[Difference]:
    """The constants in which traces differ.

    Raises:
        ValueError: If they differ in more than constants.
    """
    found: list[Difference] = []
    graphs = [model.graph for model in models]
    same = len({len(graph) for graph in graphs}) == 1
    places: dict[Any, Any] = {
        value: number for graph in graphs
        for number, value in enumerate(graph.inputs)}
    for position, nodes in enumerate(zip(*graphs)):
        same = same and len({_signature(node) for node in nodes}) == 1
        if not same:
            break
        for number, values in enumerate(zip(*(node.inputs
                                              for node in nodes))):
            if all(map(is_constant, values)):
                arrays = [array_of(value) for value in values]
                if not all(_equal(arrays[0], each) for each in arrays[1:]):
                    found.append((nodes[0], number, arrays))
            else:
                same = same and len({places.get(each)
                                     for each in values}) == 1
        for node in nodes:
            places.update((value, (position, number))
                          for number, value in enumerate(node.outputs))
    if not same:
        raise ValueError(
            f'not exported: {kind} runs other operations with another batch '
            f'of images, and a graph has one batch size for all: {WAY_OUT}')
    return found


def _signature(node: ir.Node) -> tuple:
    attributes = [
        (name, str(ir.to_proto(each) if each.type in _WHOLE else each.value))
        for name, each in node.attributes.items()]
    return (node.domain, node.op_type, len(node.inputs),
            tuple(sorted(attributes)))


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(
        a, b, equal_nan=a.dtype.kind == 'f')


def _compute(graph: ir.Graph, differences: Sequence[Difference],
             kind: str) -> None:
    """Compute constants from the batch size, in place."""
    shape = ir.node('Shape', [graph.inputs[0]])
    batch = ir.node('Gather', [
        shape.outputs[0], add_constant(graph, np.array(0))])
    graph.insert_before(graph[0], [shape, batch])

    def on_line(line: tuple[np.ndarray, np.ndarray],
                before: ir.Node) -> ir.Value:
        product = ir.node('Mul', [
            batch.outputs[0], add_constant(graph, line[0])])
        total = ir.node('Add', [
            product.outputs[0], add_constant(graph, line[1])])
        graph.insert_before(before, [product, total])
        return total.outputs[0]

    for node, number, arrays in differences:
        line = _line(arrays)
        shape_line = _line_of_shapes(arrays)
        if line is not None:
            value = on_line(line, node)
        elif shape_line is not None:
            only = add_constant(graph, arrays[0].flat[0].reshape(()))
            filled = ir.node('Expand', [only, on_line(shape_line, node)])
            graph.insert_before(node, filled)
            value = filled.outputs[0]
        else:
            raise ValueError(
                f'not exported: {kind} computes what a {node.op_type} reads '
                'in Python, from the size of the batch or from its images, '
                'and the trace holds it as a constant. If it is the size, '
                f'{WAY_OUT}')
        node.replace_input_with(number, value)
    # Shapes of the traced batch, which hold no longer.
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def _line(arrays: Sequence[np.ndarray]
          ) -> tuple[np.ndarray, np.ndarray] | None:
    """Slope and intercept of integers over the batch size, if on a line."""
    first, second, third = arrays
    if any(each.dtype != np.int64 or each.shape != first.shape
           for each in arrays):
        return None
    slope = (second - first) // (TRACED_SIZES[1] - TRACED_SIZES[0])
    intercept = first - TRACED_SIZES[0] * slope
    if any((slope * size + intercept != each).any()
           for size, each in zip(TRACED_SIZES, arrays)):
        return None
    return slope, intercept


def _line_of_shapes(arrays: Sequence[np.ndarray]
                    ) -> tuple[np.ndarray, np.ndarray] | None:
    """The same of the shapes of arrays that hold one number throughout."""
    if len({each.ndim for each in arrays}) > 1 or not all(each.size and (
            each == arrays[0].flat[0]).all() for each in arrays):
        return None
    return _line([np.array(each.shape, np.int64) for each in arrays])
