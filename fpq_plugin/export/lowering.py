"""Fake quantizers become QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from ..quantizers import Quantizer
from .graph import Graph
from .integers import UINT8, Integers, integers, weight_integers

MARK = 'FakeQuantize'


def lower_weights(graph: Graph, quantizers: Sequence[Quantizer],
                  names: Sequence[str]) -> dict[str, Integers]:
    """Take the weights' quantizers out of the graph.

    Args:
        graph (Graph): The traced graph, changed in place.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        names (Sequence[str]): Their names, for messages.

    Returns:
        dict[str, Integers]: The integers of each quantized weight, by the
        name of the tensor that stands for it; :func:`store_weights` makes
        that tensor.

    Raises:
        ValueError: Naming a weight that no integers stand for.
    """
    found: dict[str, Integers] = {}
    first: dict[tuple[str, int], str] = {}
    for node in marks(graph, of_weights=True):
        number = number_of(node)
        key = (node.input[0], number)
        if first.setdefault(key, node.output[0]) != node.output[0]:
            # A layer that is called twice has one weight.
            graph.replace_input(node.output[0], first[key])
            graph.nodes.remove(node)
    for node in marks(graph, of_weights=True):
        number = number_of(node)
        try:
            numbers = weight_integers(quantizers[number],
                                      graph.value(node.input[0]))
        except ValueError as error:
            raise ValueError(
                f'not exported: {names[number]}: {error}') from error
        name = node.output[0]
        turn = graph.only_consumer(name)
        if turn is not None and turn.op_type == 'Transpose':
            numbers.transpose(list(turn.attribute[0].ints))
            name = turn.output[0]
            graph.nodes.remove(turn)
        graph.nodes.remove(node)
        found[name] = numbers
    return found


def store_weights(graph: Graph, weights: dict[str, Integers],
                  unsigned: bool) -> None:
    """Store each weight as integers that a DequantizeLinear reads.

    Args:
        graph (Graph): The graph, changed in place.
        weights (dict[str, Integers]): The weights, by tensor.
        unsigned (bool): Whether int8 becomes uint8, 128 higher, where it
            may saturate.
    """
    for name, numbers in weights.items():
        if unsigned and numbers.carrier.low == -128 and numbers.may_saturate():
            numbers.weight = numbers.weight + 128
            numbers.zero_point = numbers.zero_point + 128
            numbers.carrier = UINT8
        integer = graph.new_name()
        graph.constants[integer] = numbers.carrier.tensor(numbers.weight)
        _dequantize(graph, integer, _parameters(graph, numbers), numbers,
                    name)


def lower_features(graph: Graph, quantizers: Sequence[Quantizer]) -> None:
    """Make each remaining mark QuantizeLinear and DequantizeLinear.

    A Clip in front keeps a range that is narrower than its type. Its bounds
    are values of the grid, so it changes no other value.
    """
    for node in marks(graph, of_weights=False):
        numbers = integers(quantizers[number_of(node)])
        x = node.input[0]
        if not numbers.is_full():
            bounds = [(end - numbers.zero_point) * numbers.step
                      for end in (numbers.low, numbers.high)]
            x = graph.add('Clip', [
                x, *(graph.add_constant(b.astype(np.float32)) for b in bounds)
            ], graph.new_name())
        graph.nodes.remove(node)
        parameters = _parameters(graph, numbers)
        integer = graph.add('QuantizeLinear', [x, *parameters],
                            graph.new_name(), **_axis(numbers))
        _dequantize(graph, integer, parameters, numbers, node.output[0])


def number_of(mark: onnx.NodeProto) -> int:
    """The number of the quantizer that a mark stands for."""
    return mark.attribute[0].i


def marks(graph: Graph, of_weights: bool) -> list[onnx.NodeProto]:
    """The marks on constants, or those on features."""
    return [
        node for node in graph.nodes if node.op_type == MARK
        and (node.input[0] in graph.constants) == of_weights
    ]


def _dequantize(graph: Graph, integer: str, parameters: list[str],
                numbers: Integers, output: str) -> None:
    graph.add('DequantizeLinear', [integer, *parameters], output,
              **_axis(numbers))


def _parameters(graph: Graph, numbers: Integers) -> list[str]:
    """Step and zero point, as both nodes take them.

    onnxruntime's QGemm wants a weight's zero point where it is 0 as well, and
    1.24 ends the process over a convolution without with its
    session.x64quantprecision.
    """
    zero_point = graph.new_name()
    graph.constants[zero_point] = numbers.carrier.tensor(numbers.zero_point)
    return [graph.add_constant(numbers.step), zero_point]


def _axis(numbers: Integers) -> dict[str, int]:
    return {} if numbers.axis is None else dict(axis=numbers.axis)


def fold_weights(graph: Graph, model: nn.Module,
                 quantizers: Sequence[Quantizer], example: Tensor) -> None:
    """Make what a mark reads a constant, where no input has a part in it.

    A layer that standardizes its weight quantizes the outcome. The value is
    torch's own: at the edge between two steps the last digit counts.

    Args:
        graph (Graph): The traced graph, changed in place.
        model (nn.Module): What was traced, in eval mode.
        quantizers (Sequence[Quantizer]): Those of the marks' numbers.
        example (Tensor): An input.
    """
    for mark in marks(graph, of_weights=False):
        name = mark.input[0]
        if name not in graph.constants and _is_fixed(graph, name):
            value = _seen_by(quantizers[number_of(mark)], model, example)
            graph.constants[name] = numpy_helper.from_array(
                value.cpu().numpy())


def _is_fixed(graph: Graph, name: str) -> bool:
    """Whether a tensor is made of constants alone, quantizers aside."""
    node = graph.producer(name)
    if name in graph.constants or node is None:
        return name in graph.constants
    return node.op_type != MARK and all(
        _is_fixed(graph, each) for each in node.input if each)


@torch.no_grad()
def _seen_by(quantizer: Quantizer, model: nn.Module,
             example: Tensor) -> Tensor:
    """The tensor that a quantizer is called with."""
    seen = []
    hook = quantizer.register_forward_pre_hook(
        lambda _, args: seen.append(args[0]))
    try:
        model(example)
    finally:
        hook.remove()
    return seen[-1]
