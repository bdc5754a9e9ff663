"""From a trained model to an ONNX model, in memory.

torch traces the model. While it does, each fake quantizer is replaced by a
mark: a node ``fpq::FakeQuantize`` with the quantizer's number, so that the
trace holds where values are quantized and nothing of how. The marks then
become nodes of the standard, in this order:

1. :func:`.lowering.find_weights` computes the integers of the weights.
2. :func:`.folding.fold_batch_norm` multiplies batch norms into their steps,
   and :func:`.folding.lower_biases` makes biases integers.
3. :func:`.lowering.store_weights` and :func:`.lowering.lower_features` write
   the integers, and QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import onnx
import onnx_ir as ir
import torch
from onnx import version_converter
from torch import Tensor, nn
from torch.autograd import Function

from .._compat.versions import onnx_tracer_options
from ..quantizers import Quantizer
from .folding import fold_batch_norm, lower_biases
from .integers import integer_grid
from .lowering import (
    MARK,
    find_weights,
    fold_weights,
    lower_features,
    marks,
    number_of,
    store_weights,
)
from .rewriting import finish_graph, read_graph

DOMAIN = 'fpq'
INPUT, OUTPUT = 'input', 'output'
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
          marked: bool = True) -> onnx.ModelProto:
    """Trace ``model`` in eval mode.

    Nothing but the fake quantizers stands for quantization: SFP, CSD and
    calibration leave nothing. The batch size is free.

    Args:
        model (nn.Module): Takes and returns one tensor; in eval mode.
        quantizers (Sequence[Quantizer]): Those of the model. Each call of
            ``quantizers[i]`` becomes one node ``fpq::FakeQuantize`` with the
            attribute ``number = i``.
        example (Tensor): An input, the first axis is the batch.
        marked (bool): False leaves the quantizers out, which gives the
            full-precision model. Defaults to True.

    Returns:
        onnx.ModelProto: The graph, its tensors ``input`` and ``output``.

    Raises:
        ValueError: If the model does not return one tensor, or torch cannot
            trace it.
    """
    out = model(example)
    if not isinstance(out, Tensor):
        raise ValueError(
            'not exported: the model must return one tensor, and '
            f'{type(model).__name__} returns a {type(out).__name__}')
    options = onnx_tracer_options()
    if marked:
        options['custom_opsets'] = {DOMAIN: 1}
    content = io.BytesIO()
    with _replaced(quantizers, marked), warnings.catch_warnings():
        # Shapes become constants, but for the batch: what parity is for.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.simplefilter('ignore', UserWarning)
        try:
            torch.onnx.export(
                model, (example, ),
                content,
                opset_version=TRACED_OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={
                    INPUT: {0: 'batch'},
                    OUTPUT: {0: 'batch'}
                },
                **options)
        except Exception as error:
            raise ValueError('not exported: torch cannot trace '
                             f'{type(model).__name__}: {error}') from error
    return onnx.load_from_string(content.getvalue())


def refuse_unexportable(model: nn.Module) -> None:
    """Name every quantizer that no standard node can stand for.

    Raises:
        ValueError: Naming them, with the reasons.
    """
    reasons = []
    for name, quantizer in quantizers_of(model).items():
        try:
            integer_grid(quantizer)
        except ValueError as error:
            reasons.append(f'{name}: {error}')
    if reasons:
        raise ValueError('not exported: ' + '\n  '.join(reasons))


def quantizers_of(model: nn.Module) -> dict[str, Quantizer]:
    """The fake quantizers that are switched on, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
        and (module.has_step() or module.lacks_step())
    }


def build_onnx(model: nn.Module,
               example: Tensor,
               integer_biases: bool = True,
               unsigned_weights: bool = False) -> ir.Model:
    """Build the ONNX model of a quantized torch model.

    Args:
        model (nn.Module): In eval mode, takes and returns one tensor.
        example (Tensor): An input, (N, ...).
        integer_biases (bool): Whether biases become integers where 8-bit
            kernels take them. Defaults to True.
        unsigned_weights (bool): Whether 8-bit weights are uint8 instead of
            int8. Defaults to False.

    Returns:
        ir.Model: The checked model; its batch size is free.

    Raises:
        ValueError: If something cannot be exported; the message names it.
    """
    refuse_unexportable(model)
    found = quantizers_of(model)
    if not found:
        raise ValueError('not exported: the model has no fake quantizer that '
                         'is switched on. Give the config that it was trained '
                         'with by FPQ')
    names, quantizers = list(found), list(found.values())
    built = read_graph(trace(model, quantizers, example))
    fold_weights(built.graph, model, quantizers, example)
    built = _with_needed_opset(built, quantizers)
    graph = built.graph
    weights = find_weights(graph, quantizers, names)
    fold_batch_norm(graph, weights)
    lower_biases(graph, weights, quantizers, integer_biases)
    store_weights(graph, weights, unsigned_weights)
    lower_features(graph, quantizers)
    finish_graph(built)
    return built


def _with_needed_opset(model: ir.Model,
                       quantizers: Sequence[Quantizer]) -> ir.Model:
    """The model in the first opset that has its weights' types."""
    grids = [integer_grid(quantizers[number_of(mark)], stored=True)
             for mark in marks(model.graph, of_weights=True)]
    opset = max((grid.type.opset for grid in grids), default=0)
    if opset <= TRACED_OPSET:
        return model
    return read_graph(
        version_converter.convert_version(ir.to_proto(model), opset))


def build_float_onnx(model: nn.Module, example: Tensor) -> ir.Model:
    """The same without quantization, to measure against.

    Args:
        model (nn.Module): In eval mode, takes and returns one tensor.
        example (Tensor): An input, (N, ...).

    Returns:
        ir.Model: The checked model, in float32.
    """
    quantizers = list(quantizers_of(model).values())
    built = read_graph(trace(model, quantizers, example, marked=False))
    finish_graph(built)
    return built
