"""A trained model becomes a ``.pt2`` file, once torch has run it.

The file holds what :mod:`.program` makes, which ExecuTorch and other
converters go on from, and nothing of FPQ's.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._compat.files import write_whole
from .._compat.restoring import kept_modes
from ..targets import target_of
from ..version import __version__
from .exportable import checked_path, compared_batches, unwrapped
from .formats import FileFormat, OpenedFile, register_format
from .images import OTHER_SIZES, Batch
from .onnx_file import exported_layers
from .parity import TOLERANCE, compare_batch_of, measure_parity
from .program import build_program, moved_weights, require_operators
from .report import ExportReport


def _content_of(program: Any, notes: dict[str, str]) -> bytes:
    for node in program.graph.nodes:  # they tell this machine's folders
        node.meta.pop('stack_trace', None)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=notes)
    return file.getvalue()


def _notes(model: nn.Module, source: dict[str, str]) -> dict[str, str]:
    layers = (f'{each.name} W{each.weight_bits}A{each.activation_bits}'
              for each in exported_layers(model))
    notes = {'version': __version__, 'bits': '\n'.join(layers), **source}
    return {f'fpq.{key}': value for key, value in notes.items()}


def export_program(model: nn.Module,
                   path: str | os.PathLike,
                   batches: Iterable[Batch],
                   tolerance: float = TOLERANCE,
                   source: dict[str, str] | None = None,
                   batch_size: int | None = None,
                   target: str | None = None) -> ExportReport:
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
        target (str, optional): The engine that is to take what a converter
            makes of it, such as 'executorch'. Defaults to None, any.

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
    rules = target_of(target)
    path = checked_path(path, batch_size, rules)
    model = unwrapped(model)
    with kept_modes(model):
        model.eval()
        example, batches = compared_batches(batches, batch_size)
        program = build_program(model, example, batch_size, target=rules)
        content = _content_of(program, _notes(model, source or {}))
        run = torch.export.load(io.BytesIO(content)).module()
        parity, = measure_parity(model, [run], batches)
        moved = moved_weights(model, example, rules)
        parity.refuse(tolerance, moved)
        for size in () if batch_size else OTHER_SIZES:
            compare_batch_of(size, model, run, example, parity)
        in_float = _content_of(
            build_program(model, example, batch_size, quantized=False), {})
    write_whole(path, lambda file: file.write(content))
    return ExportReport(
        str(path), len(content), len(in_float), None, parity, (),
        exported_layers(model), target='torch.export', batch_size=batch_size,
        moved_weights=moved,
        unseen='run by torch, which computes it in float; a converter such as '
        "ExecuTorch's makes integer kernels of it")


def check_program(model: nn.Module, example: Tensor,
                  target: str | None = None) -> None:
    """Export the model in memory: what cannot be exported raises.

    Args:
        model (nn.Module): In eval mode, takes and returns one tensor.
        example (Tensor): An input, (N, ...).
        target (str, optional): The engine. Defaults to None, any.

    Raises:
        ValueError: If something cannot be exported; the message names it.
    """
    build_program(model, example, target=target_of(target))


def open_program(path: str | os.PathLike,
                 engine: str | None = None) -> OpenedFile:
    """Open a ``.pt2`` file in torch, see :meth:`.FileFormat.open`."""
    require_operators()
    program = torch.export.load(os.fspath(path))
    first = next(node for node in program.graph.nodes if node.op ==
                 'placeholder' and 'val' in node.meta and node.name in
                 program.graph_signature.user_inputs)
    size = first.meta['val'].shape[0]
    return OpenedFile(program.module(), 'torch',
                      size if isinstance(size, int) else None)


PT2 = register_format(FileFormat(
    name='ExportedProgram',
    endings=('.pt2', ),
    packages=(),
    extra='',
    check=check_program,
    write=export_program,
    takes_target=True,
    runs_in=('torch', ),
    open_in=open_program))
