"""From a trained model to an ONNX model, in memory.

:mod:`.tracing` traces the model with a mark in the place of each fake
quantizer, and sees to it that the batch size is free. :mod:`.shapes` and
:mod:`.padding` take away what the file would otherwise compute at each call.
The marks then become nodes of the standard, in this order:

1. :func:`.features.place_marks` leaves one on each tensor, and
   :func:`.lowering.find_weights` computes the integers of the weights.
2. :func:`.folding.fold_batch_norm` multiplies batch norms into their steps,
   :func:`.filling.fill_weights` fills their types where the target asks for
   it, and :func:`.folding.lower_biases` makes biases integers.
3. :func:`.lowering.store_weights` and :func:`.features.lower_features` write
   the integers, and QuantizeLinear and DequantizeLinear.
   :func:`.gates.lower_gates` makes sums of hard sigmoids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import version_converter
from torch import Tensor, nn

from ..joints import refuse_lost_hooks, rounded_biases
from ..quantizers import Quantizer
from ..targets import STANDARD, Target
from .exportable import quantizers_of, refuse_unexportable, refuse_unfit
from .features import lower_features, place_marks
from .filling import fill_weights
from .folding import Bias, fold_batch_norm, lower_biases
from .gates import lower_gates
from .images import some_images
from .integers import integer_grid
from .lowering import (
    find_weights,
    fold_weights,
    marks,
    number_of,
    store_weights,
)
from .outputs import OUTPUT, named_tensors, structure_of
from .padding import fold_padding
from .rewriting import finish_graph, read_graph
from .shapes import fix_shapes
from .tracing import TRACED_OPSET, TRACED_SIZES, trace_any_batch

# Enough for traces of 2, 3 and 5 images, none of which is seen twice.
MOST_TRACED = sum(TRACED_SIZES)


@dataclass(frozen=True)
class Built:
    """An ONNX model, and what became of a trained one in it.

    Attributes:
        model (ir.Model): The checked model.
        biases (list[Bias]): What became of the biases.
        integer_biases (bool): Whether they were to be integers.
        moved_weights (int): Weights that are one step from the trained ones.
    """

    model: ir.Model
    biases: list[Bias]
    integer_biases: bool
    moved_weights: int


@dataclass(frozen=True)
class TracedModel:
    """A model as torch traced it, from which files are built.

    Attributes:
        model (nn.Module): The model.
        example (Tensor): The images it was traced with, (N, ...).
        quantizers (dict[str, Quantizer]): Its fake quantizers by name; the
            marks have their numbers.
        graph (onnx.ModelProto): The trace, its shapes and padding folded.
        plain (bool): Whether it is as torch traced it.
        target (Target): What is to take the files.
        batch_size (int, optional): The files' batch size, None if free.
        structure (Any): How the model returns its tensors, see
            :func:`.outputs.structure_of`; None if it is one alone.
    """

    model: nn.Module
    example: Tensor
    quantizers: dict[str, Quantizer]
    graph: onnx.ModelProto
    plain: bool
    target: Target
    batch_size: int | None
    structure: Any = None

    def build(self, integer_biases: bool = True,
              unsigned_weights: bool = False,
              clips_weights: bool = False) -> Built:
        """Build the ONNX model.

        Args:
            integer_biases (bool): Whether biases become integers where 8-bit
                kernels take them. Defaults to True.
            unsigned_weights (bool): Whether 8-bit weights are uint8 instead
                of int8. Defaults to False.
            clips_weights (bool): Whether a weight may be one step from the
                trained one, so that a batch norm fits into its layer.
                Defaults to False.

        Returns:
            Built: The model, and what became of biases and weights.

        Raises:
            ValueError: If something cannot be exported; the message names it.
        """
        names, quantizers = list(self.quantizers), list(
            self.quantizers.values())
        built = read_graph(self.graph)
        fold_weights(built.graph, self.model, quantizers,
                     self.example[:self.batch_size or 2])
        place_marks(built.graph, quantizers, self.target)
        built = _with_needed_opset(built, quantizers, self.target)
        graph = built.graph
        weights = find_weights(graph, quantizers, names, self.target)
        moved = fold_batch_norm(graph, weights, clips_weights)
        if self.target.fills_weights:
            fill_weights(graph, weights, quantizers, self.target)
        biases = lower_biases(graph, weights, quantizers, names,
                              integer_biases, self.target)
        store_weights(graph, weights, names, unsigned_weights)
        lower_features(graph, quantizers, self.target)
        if 'hard_swish' in self.target.joints:
            lower_gates(graph)
        finish_graph(built)
        return Built(built, biases, integer_biases, moved)


def trace_model(model: nn.Module,
                example: Tensor,
                target: Target = STANDARD,
                batch_size: int | None = None) -> TracedModel:
    """Trace a quantized torch model, to build ONNX models from.

    Args:
        model (nn.Module): In eval mode, takes one tensor and returns one, or
            tuples, lists and dicts of them.
        example (Tensor): Images, (N, ...), any number of them.
        target (Target): What is to take the file. Defaults to STANDARD.
        batch_size (int, optional): The file's batch size. Defaults to None,
            a free one.

    Returns:
        TracedModel: The trace.

    Raises:
        ValueError: If something cannot be exported; the message names it.
    """
    refuse_unfit(model)
    refuse_lost_hooks(model)
    refuse_unexportable(model, target)
    found = quantizers_of(model)
    if not found:
        raise ValueError('not exported: the model has no fake quantizer that '
                         'is switched on. Give the config that it was trained '
                         'with by FPQ')
    with rounded_biases(model):
        graph, plain = trace_any_batch(model, list(found.values()), example,
                                       batch_size=batch_size)
    images = some_images(example, batch_size or MOST_TRACED)
    built = _folded(graph, images, batch_size)
    with torch.no_grad():
        answer = model(images)
    return TracedModel(
        model, images, found, ir.to_proto(built), plain, target, batch_size,
        None if list(named_tensors(answer)) == [OUTPUT] else
        structure_of(answer))


def _folded(graph: onnx.ModelProto, images: Tensor,
            batch_size: int | None) -> ir.Model:
    """A trace without what need not be computed."""
    built = read_graph(graph)
    fix_shapes(built, images, batch_size)
    fold_padding(built.graph)
    return built


def build_onnx(model: nn.Module,
               example: Tensor,
               integer_biases: bool = True,
               unsigned_weights: bool = False) -> ir.Model:
    """Build the ONNX model of a quantized torch model, for onnxruntime.

    Args:
        model (nn.Module): As for :func:`trace_model`.
        example (Tensor): Images, (N, ...), any number of them.
        integer_biases (bool): As for :meth:`TracedModel.build`. Defaults to
            True.
        unsigned_weights (bool): The same. Defaults to False.

    Returns:
        ir.Model: The checked model; its batch size is free.

    Raises:
        ValueError: If something cannot be exported; the message names it.
    """
    return trace_model(model, example).build(integer_biases,
                                             unsigned_weights).model


def _with_needed_opset(model: ir.Model, quantizers: Sequence[Quantizer],
                       target: Target) -> ir.Model:
    """The model in the first opset that has its weights' types."""
    grids = [integer_grid(quantizers[number_of(mark)], True, target)
             for mark in marks(model.graph, of_weights=True)]
    opset = max((grid.type.opset for grid in grids), default=0)
    if opset <= TRACED_OPSET:
        return model
    return read_graph(
        version_converter.convert_version(ir.to_proto(model), opset))


def build_float_onnx(traced: TracedModel) -> ir.Model:
    """The same without quantization, to measure against.

    Args:
        traced (TracedModel): The quantized model.

    Returns:
        ir.Model: The checked model, in float32.
    """
    with rounded_biases(traced.model):
        graph, _ = trace_any_batch(
            traced.model, list(traced.quantizers.values()), traced.example,
            False, traced.batch_size, traced.plain)
    built = _folded(graph, traced.example, traced.batch_size)
    finish_graph(built)
    return built
