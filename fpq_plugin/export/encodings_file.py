"""A trained model becomes encodings for Qualcomm's tools, and a float ONNX.

``model.encodings`` and ``model.encodings.onnx`` are written together, once
onnxruntime, computing with the encodings, answers as the trained model.
Importing this module needs neither onnx nor onnxruntime.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from .._compat.files import write_whole
from .._compat.restoring import kept_modes
from .exportable import checked_path, compared_batches, unwrapped
from .formats import FileFormat, register_format
from .images import OTHER_SIZES, Batch
from .onnx_file import add_metadata, content_of, exported_layers
from .parity import TOLERANCE, compare_batch_of, measure_parity
from .report import ExportReport


def export_encodings(model: nn.Module,
                     path: str | os.PathLike,
                     batches: Iterable[Batch],
                     tolerance: float = TOLERANCE,
                     source: dict[str, str] | None = None,
                     batch_size: int | None = None) -> ExportReport:
    """Write a trained model as float ONNX with AIMET's encodings beside it.

    Args:
        model (nn.Module): A quantized model of any backend with 4 bits or
            more, on the CPU; see :func:`.export_onnx`. Its training
            mode is as before when this returns.
        path (str | os.PathLike): The file of encodings to write. The ONNX
            file has its name with '.onnx' behind.
        batches (Iterable[Batch]): Real inputs (N, ...), each with labels (N,)
            or None, that both models are compared on.
        tolerance (float): As for :func:`.onnx_file.export_onnx`. Defaults to
            0.1.
        source (dict[str, str], optional): Notes for the ONNX file's metadata.
            Defaults to None.
        batch_size (int, optional): The batch size of the ONNX file. Defaults
            to None, any.

    Returns:
        ExportReport: Sizes, parity and bits.

    Raises:
        ValueError: If something cannot be exported; the message names it.
        TypeError: If ``batch_size`` is not an integer.
        ParityError: If the model with the encodings answers otherwise.
        FileNotFoundError: If there is no folder for the files.
        ImportError: If onnx, onnx-ir or onnxruntime is missing.
    """
    ENCODINGS.require_packages()
    path = checked_path(path, batch_size)
    model = unwrapped(model)
    with kept_modes(model):
        return _export(model.eval(), path, batches, tolerance, source or {},
                       batch_size)


def _export(model: nn.Module, path: Path, batches: Iterable[Batch],
            tolerance: float, source: dict[str, str],
            batch_size: int | None) -> ExportReport:
    from .build import build_float_onnx, trace_model
    from .encodings import build_encodings, with_encodings
    from .runtime import open_session

    example, batches = compared_batches(batches, batch_size)
    traced = trace_model(model, example, batch_size=batch_size)
    built, encodings = build_encodings(traced)
    run = open_session(content_of(with_encodings(built, encodings)))
    parity, = measure_parity(model, [run], batches)
    parity.refuse(tolerance)
    for size in () if batch_size else OTHER_SIZES:
        compare_batch_of(size, model, run, example, parity)
    add_metadata(built, traced, source)
    network = content_of(built)
    text = json.dumps(encodings, indent=1).encode()
    write_whole(f'{path}.onnx', lambda file: file.write(network))
    write_whole(path, lambda file: file.write(text))
    return ExportReport(
        str(path), len(network) + len(text),
        len(content_of(build_float_onnx(traced))), built.opset_imports[''],
        parity, (), exported_layers(model), target='QNN',
        batch_size=batch_size, unseen='computed in float as the encodings '
        "say; Qualcomm's tools were not run")


def check_encodings(model: nn.Module, example: Tensor) -> None:
    """Build the encodings in memory: what cannot be exported raises.

    Args:
        model (nn.Module): In eval mode.
        example (Tensor): An input, (N, ...).

    Raises:
        ValueError: If something cannot be exported; the message names it.
    """
    from .build import trace_model
    from .encodings import build_encodings

    build_encodings(trace_model(model, example))


ENCODINGS = register_format(FileFormat(
    name="AIMET's encodings",
    endings=('.encodings', ),
    packages=('onnx', 'onnx_ir', 'onnxruntime'),
    extra='export',
    check=check_encodings,
    write=export_encodings))
