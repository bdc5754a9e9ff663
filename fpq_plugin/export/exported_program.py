"""A trained model becomes a ``.pt2`` file: torch.export with integers.

The program has torch's own operators ``quantized_decomposed``: features are
quantized and dequantized in front of each layer, and weights are int8
constants that are dequantized, with the batch norm that follows
(:mod:`.program_norms`). From there ExecuTorch and other converters go
on. All integers are int8, which is what their kernels take; fewer bits are a
narrower range of it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._compat.files import write_whole
from .._compat.restoring import kept_modes
from .._compat.torch_ao import HAS_TORCH_AO
from ..layers import quantized_layers
from ..options import FLOAT_BITS
from ..quantizers import Quantizer
from ..version import __version__
from .exportable import (
    compared_batches,
    quantizers_of,
    refuse_unexportable,
    refuse_unfit,
    require_size,
    unwrapped,
)
from .integers import IntegerGrid, integer_grid, weight_integers
from .onnx_file import exported_layers
from .parity import (
    OTHER_SIZES,
    TOLERANCE,
    WAY_OUT,
    Batch,
    compare_batch_of,
    measure_parity,
    some_images,
)
from .program_norms import fold_batch_norms
from .report import ExportReport
from .targets import Target, register_target

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


def _of_features(quantizer: Quantizer) -> Forward:
    operators = require_operators()
    grid = integer_grid(quantizer)
    zero_point, low, high = _int8(grid)
    numbers = float(grid.step), int(zero_point), low, high, torch.int8

    def forward(x: Tensor) -> Tensor:
        integers = operators.quantize_per_tensor(x, *numbers)
        return operators.dequantize_per_tensor(integers, *numbers)

    return forward


def _of_weight(quantizer: Quantizer,
               weight: Tensor) -> tuple[Forward, dict[str, Tensor]]:
    """With the buffers that the quantizer has meanwhile."""
    operators = require_operators()
    grid = weight_integers(quantizer, weight.numpy())
    zero_point, low, high = _int8(grid)
    integers = grid.weight - (grid.high - high)
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


def _operators_of(model: nn.Module, images: Tensor
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
                    quantizer, weights[quantizer])
            else:
                forwards[quantizer] = _of_features(quantizer)
        except ValueError as error:
            raise ValueError(f'not exported: {name}: {error}') from error
    return forwards, buffers


@contextmanager
def _replaced(forwards: Mapping[Quantizer, Forward],
              buffers: Mapping[Quantizer, dict[str, Tensor]]
              ) -> Iterator[None]:
    for quantizer, forward in forwards.items():
        vars(quantizer)['forward'] = forward
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
                  quantized: bool = True) -> Any:
    """Export a quantized torch model by ``torch.export``.

    Args:
        model (nn.Module): In eval mode, takes and returns one tensor. It is
            as before when this returns.
        example (Tensor): Inputs, (N, ...), any number of them.
        batch_size (int, optional): The program's batch size. Defaults to
            None, a free one.
        quantized (bool): False leaves the quantizers out, which gives the
            full-precision model. Defaults to True.

    Returns:
        torch.export.ExportedProgram: The program; it holds nothing but what
        it reads.

    Raises:
        ValueError: If something cannot be exported; the message names it.
    """
    require_operators()
    refuse_unfit(model)
    refuse_unexportable(model)
    found = list(quantizers_of(model).values())
    if not found:
        raise ValueError('not exported: the model has no fake quantizer that '
                         'is switched on. Give the config that it was trained '
                         'with by FPQ')
    images = some_images(example, batch_size or EXAMPLES)
    out = model(images)
    if not isinstance(out, Tensor):
        raise ValueError(
            'not exported: the model must return one tensor, and '
            f'{type(model).__name__} returns a {type(out).__name__}')
    replaced = (_operators_of(model, images) if quantized else
                (dict.fromkeys(found, _identity), {}))
    with _replaced(*replaced):
        whole = _exported(model, images, batch_size).module()
    fold_batch_norms(whole)
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


# -- the file -------------------------------------------------------------

class ProgramReport(ExportReport):
    """Of an export whose file is a program for others to lower."""

    def warnings(self) -> list[str]:
        """What was not seen: the program in an engine."""
        found = ['run by torch, which computes it in float; a converter such '
                 "as ExecuTorch's makes integer kernels of it"]
        if self.batch_size is not None:
            found.append(f'takes batches of {self.batch_size} alone')
        return found


def _content_of(program: Any, notes: dict[str, str]) -> bytes:
    for node in program.graph.nodes:  # they tell this machine's folders
        node.meta.pop('stack_trace', None)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=notes)
    return file.getvalue()


def _notes(model: nn.Module, source: dict[str, str]) -> dict[str, str]:
    layers = (f'{each.name} W{each.weight_bits}A{each.activation_bits}'
              for each in exported_layers(model)
              if min(each.weight_bits, each.activation_bits) < FLOAT_BITS)
    notes = {'version': __version__, 'bits': '\n'.join(layers), **source}
    return {f'fpq.{key}': value for key, value in notes.items()}


def export_program(model: nn.Module,
                   path: str | os.PathLike,
                   batches: Iterable[Batch],
                   tolerance: float = TOLERANCE,
                   source: dict[str, str] | None = None,
                   batch_size: int | None = None) -> ExportReport:
    """Write a trained model as ``.pt2``, once it answers as it does.

    The file is what ``torch.export.load`` reads, with the operators
    ``quantized_decomposed`` and weights as int8. It is also compared in
    batches of 1 and of 7 inputs. A file is written completely, or not at all.

    Args:
        model (nn.Module): A quantized model of any backend, on the CPU; it
            takes and returns one tensor. Its training mode is as before when
            this returns.
        path (str | os.PathLike): The file to write.
        batches (Iterable[Batch]): Real inputs (N, ...), each with labels (N,)
            or None, that both models are compared on.
        tolerance (float): As for :func:`.onnx_file.export_onnx`. Defaults to
            0.1.
        source (dict[str, str], optional): Notes for the file, which
            ``torch.export.load`` gives as ``extra_files``. Defaults to None.
        batch_size (int, optional): Write a file for batches of this size
            alone. Defaults to None, any size.

    Returns:
        ExportReport: Sizes, parity and bits.

    Raises:
        ValueError: If something cannot be exported, or this torch has not
            what is needed; the message names it.
        TypeError: If ``batch_size`` is not an integer.
        ParityError: If the exported model answers otherwise.
        FileNotFoundError: If there is no folder for the file.
    """
    require_operators()
    path = Path(path)
    if batch_size is not None:
        require_size(batch_size)
    if not path.parent.is_dir():
        raise FileNotFoundError(f'not exported: no folder {path.parent}')
    model = unwrapped(model)
    with kept_modes(model):
        model.eval()
        example, batches = compared_batches(batches, batch_size)
        program = build_program(model, example, batch_size)
        content = _content_of(program, _notes(model, source or {}))
        run = torch.export.load(io.BytesIO(content)).module()
        parity, = measure_parity(model, [run], batches)
        parity.refuse(tolerance)
        for size in () if batch_size else OTHER_SIZES:
            compare_batch_of(size, model, run, example, parity)
        in_float = _content_of(
            build_program(model, example, batch_size, quantized=False), {})
    write_whole(path, lambda file: file.write(content))
    return ProgramReport(
        str(path), len(content), len(in_float), None, parity, (),
        exported_layers(model), engine='torch.export', batch_size=batch_size)


def check_program(model: nn.Module, example: Tensor) -> None:
    """Export the model in memory: what cannot be exported raises.

    Args:
        model (nn.Module): In eval mode, takes and returns one tensor.
        example (Tensor): An input, (N, ...).

    Raises:
        ValueError: If something cannot be exported; the message names it.
    """
    build_program(model, example)


PT2 = register_target(Target(
    name='.pt2',
    endings=('.pt2', ),
    packages=('torch', ),
    extra='export',
    check=check_program,
    write=export_program))
