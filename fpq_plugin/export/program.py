"""The ``ExportedProgram`` of a trained model: torch.export with integers.

The program has torch's own operators ``quantized_decomposed``: features are
quantized and dequantized in front of each layer, and weights are int8
constants that are dequantized, with the batch norm that follows
(:mod:`.program_norms`). All integers are int8, which is what kernels take;
fewer bits are a narrower range of it. For an engine that reads no ranges
:mod:`.program_layout` keeps them otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._compat.torch_ao import HAS_TORCH_AO
from ..joints import rounded_biases
from ..layers import quantized_layers
from ..quantizers import Quantizer
from ..targets import STANDARD, Target
from .exportable import quantizers_of, refuse_unexportable, refuse_unfit
from .images import WAY_OUT, some_images
from .integers import IntegerGrid, integer_grid, weight_integers
from .program_layout import lay_out
from .program_norms import fold_batch_norms

HAS_EXPORT = hasattr(torch.compiler, 'is_exporting')
"""Since torch 2.7: torch tells whether it records a graph."""
# A batch of one would be a constant of the program.
EXAMPLES = 2


def require_operators() -> Any:
    """The operators ``quantized_decomposed`` of this torch.

    Raises:
        ValueError: If it has none, or no torch.export that can be told.
    """
    if not HAS_EXPORT or not HAS_TORCH_AO:
        raise ValueError(
            'not exported: .pt2 needs torch>=2.7 with torch.ao.quantization, '
            f'whose operators it holds, and this is torch {torch.__version__}')
    import_module('torch.ao.quantization.fx._decomposed')
    return torch.ops.quantized_decomposed


# -- quantizers as operators ----------------------------------------------

def _int8(grid: IntegerGrid) -> tuple[np.ndarray, int, int]:
    """Zero point and bounds of a grid whose integers are int8."""
    shift = 128 if grid.high > 127 else 0
    return grid.zero_point - shift, grid.low - shift, grid.high - shift


Forward = Callable[[Tensor], Tensor]
"""What a quantizer does while torch records the program."""


def _identity(x: Tensor) -> Tensor:
    return x


def _of_features(quantizer: Quantizer, target: Target) -> Forward:
    operators = require_operators()
    grid = integer_grid(quantizer, target=target)
    zero_point, low, high = _int8(grid)
    numbers = float(grid.step), int(zero_point), low, high, torch.int8

    def forward(x: Tensor) -> Tensor:
        integers = operators.quantize_per_tensor(x, *numbers)
        return operators.dequantize_per_tensor(integers, *numbers)

    return forward


def _weight_grid(quantizer: Quantizer, weight: Tensor,
                 target: Target) -> IntegerGrid:
    grid = weight_integers(quantizer, weight.numpy(), target)
    if target.fills_weights:
        if grid.zero_point.any():
            raise ValueError(f'{target.title} takes weights around 0 alone: '
                             'train it with symmetric=True')
        grid.fill(target.mirrored_weights)
    if target.mirrored_weights:
        grid.weight = grid.weight.clip(-grid.type.high)
    return grid


def moved_weights(model: nn.Module, example: Tensor, target: Target) -> int:
    """How many weights an engine has one step higher than the model.

    They are the lowest of their type, where the engine takes one more.

    Args:
        model (nn.Module): In eval mode, takes one tensor.
        example (Tensor): Inputs, (N, ...).
        target (Target): The engine's rules.

    Returns:
        int: The number, 0 where the engine takes all integers.
    """
    if not target.mirrored_weights:
        return 0
    grids = [weight_integers(quantizer, weight.numpy(), target)
             for quantizer, weight in _weights(model, example[:1]).items()]
    return sum(int((grid.weight < -grid.type.high).sum()) for grid in grids)


def _of_weight(quantizer: Quantizer, weight: Tensor, target: Target
               ) -> tuple[Forward, dict[str, Tensor]]:
    """With the buffers that the quantizer has meanwhile."""
    operators = require_operators()
    grid = _weight_grid(quantizer, weight, target)
    zero_point, low, high = _int8(grid)
    if target.narrow == 'end':
        low, high = grid.type.low, grid.type.high
    integers = grid.weight - (128 if grid.high > 127 else 0)
    buffers = dict(integers=torch.tensor(integers, dtype=torch.int8))
    bounds = low, high, torch.int8
    if grid.axis is None:
        numbers = float(grid.step), int(zero_point), *bounds
        return lambda x: operators.dequantize_per_tensor(
            quantizer.integers, *numbers), buffers
    buffers.update(steps=torch.tensor(grid.step),
                   zero_points=torch.tensor(zero_point))
    return lambda x: operators.dequantize_per_channel(
        quantizer.integers, quantizer.steps, quantizer.zero_points, grid.axis,
        *bounds), buffers


def _operators_of(model: nn.Module, images: Tensor, target: Target
                  ) -> tuple[dict[Quantizer, Forward],
                             dict[Quantizer, dict[str, Tensor]]]:
    """What all quantizers do in the program, and the weights' buffers."""
    weights = _weights(model, images)
    forwards: dict[Quantizer, Forward] = {}
    buffers = {}
    for name, quantizer in quantizers_of(model).items():
        try:
            if quantizer in weights:
                forwards[quantizer], buffers[quantizer] = _of_weight(
                    quantizer, weights[quantizer], target)
            else:
                forwards[quantizer] = _of_features(quantizer, target)
        except ValueError as error:
            raise ValueError(f'not exported: {name}: {error}') from error
    return forwards, buffers


@contextmanager
def _replaced(forwards: Mapping[Quantizer, Forward],
              buffers: Mapping[Quantizer, dict[str, Tensor]]
              ) -> Iterator[None]:
    for quantizer, forward in forwards.items():
        quantizer.forward = forward  # type: ignore[assignment]
    for quantizer, named in buffers.items():
        for name, value in named.items():
            quantizer.register_buffer(name, value)
    try:
        yield
    finally:
        for quantizer in forwards:
            del quantizer.forward
        for quantizer, named in buffers.items():
            for name in named:
                delattr(quantizer, name)


def _weights(model: nn.Module, example: Tensor) -> dict[Quantizer, Tensor]:
    """What each weight's quantizer is given when the model runs."""
    found: dict[Quantizer, Tensor] = {}

    def recording(quantizer: Quantizer) -> Forward:

        def forward(x: Tensor) -> Tensor:
            found[quantizer] = x.detach().clone()
            return type(quantizer).forward(quantizer, x)

        return forward

    quantizers = [layer.weight_quantizer
                  for layer in quantized_layers(model).values()]
    with _replaced({each: recording(each) for each in quantizers
                    if each is not None and each.has_step()}, {}):
        model(example)
    return found


# -- the program ----------------------------------------------------------

@torch.no_grad()
def build_program(model: nn.Module,
                  example: Tensor,
                  batch_size: int | None = None,
                  quantized: bool = True,
                  target: Target = STANDARD) -> Any:
    """Export a quantized torch model by ``torch.export``.

    Args:
        model (nn.Module): In eval mode, takes and returns one tensor. It is
            as before when this returns.
        example (Tensor): Inputs, (N, ...), any number of them.
        batch_size (int, optional): The program's batch size. Defaults to
            None, a free one.
        quantized (bool): False leaves the quantizers out, which gives the
            full-precision model. Defaults to True.
        target (Target): What is to take the program. Defaults to STANDARD.

    Returns:
        torch.export.ExportedProgram: The program; it holds nothing but what
        it reads.

    Raises:
        ValueError: If something cannot be exported; the message names it.
    """
    require_operators()
    refuse_unfit(model)
    refuse_unexportable(model, target)
    found = list(quantizers_of(model).values())
    if not found:
        raise ValueError('not exported: the model has no fake quantizer that '
                         'is switched on. Give the config that it was trained '
                         'with by FPQ')
    images = some_images(example, batch_size or EXAMPLES)
    out = model(images)
    if not isinstance(out, Tensor):
        raise ValueError(
            'not exported: a program returns one tensor, and '
            f'{type(model).__name__} a {type(out).__name__}: an .onnx file '
            'takes it')
    replaced = (_operators_of(model, images, target) if quantized else
                (dict.fromkeys(found, _identity), {}))
    with rounded_biases(model), _replaced(*replaced):
        whole = _exported(model, images, batch_size).module()
    fold_batch_norms(whole)
    _strip(whole)
    program = _exported(whole, images, batch_size)
    if target.narrow != 'end':
        return program
    # What is changed in place cannot be moved.
    whole = program.run_decompositions({}).module()
    lay_out(whole)
    _strip(whole)
    return _exported(whole, images, batch_size)


def _exported(model: nn.Module, images: Tensor, batch_size: int | None) -> Any:
    free = None if batch_size else ({0: torch.export.Dim('batch')}, )
    try:
        return torch.export.export(model, (images, ), dynamic_shapes=free,
                                   strict=False)
    except Exception as error:
        raise ValueError(
            f'not exported: torch.export of {type(model).__name__} fails: '
            f'{error}' + ('' if batch_size else f'. If it is the batch size, '
                          f'{WAY_OUT}')) from error


def _strip(graph: torch.fx.GraphModule) -> None:
    """Take off what no operation reads, as the weights in float."""
    read = {node.target for node in graph.graph.nodes
            if node.op == 'get_attr' and node.users}
    for node in list(graph.graph.nodes):
        if node.op == 'get_attr' and not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
    for name in [*dict(graph.named_parameters()),
                 *dict(graph.named_buffers())]:
        if name not in read:
            owner, _, attribute = name.rpartition('.')
            delattr(graph.get_submodule(owner), attribute)
