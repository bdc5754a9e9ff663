"""A trained model becomes a ``.pte`` file, once ExecuTorch has run it.

ExecuTorch lowers what :mod:`.program` makes to XNNPACK's kernels. Its shapes
are all known then, so a file is for batches of one size, of one if no other is
asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from shutil import which
from typing import Any

import torch
from torch import Tensor, nn

from .._compat.files import write_whole
from .._compat.restoring import kept_modes
from ..targets import EXECUTORCH, target_of
from .executorch_kernels import find_kernels
from .exportable import checked_path, compared_batches, unwrapped
from .formats import FileFormat, OpenedFile, register_format
from .images import Batch, some_images
from .onnx_file import exported_layers
from .parity import TOLERANCE, measure_parity
from .program import build_program, moved_weights, require_operators
from .report import ExportReport, Latency
from .timing import latencies

FLATC = 'FLATC_EXECUTABLE'


def export_executorch(model: nn.Module,
                      path: str | os.PathLike,
                      batches: Iterable[Batch],
                      tolerance: float = TOLERANCE,
                      source: dict[str, str] | None = None,
                      batch_size: int | None = None,
                      target: str | None = None) -> ExportReport:
    """Write a trained model for ExecuTorch, once that answers as it does.

    XNNPACK computes it, on integers where the model has the joints of
    ``target='executorch'``. A file is written completely, or not at all.

    Args:
        model (nn.Module): A quantized model of any backend, on the CPU; it
            takes and returns one tensor. Its training mode is as before when
            this returns.
        path (str | os.PathLike): The file to write.
        batches (Iterable[Batch]): Real inputs (N, ...), each with labels (N,)
            or None, that both models are compared on.
        tolerance (float): As for :func:`.onnx_file.export_onnx`. Defaults to
            0.1.
        source (dict[str, str], optional): Notes; the file has no place for
            them. Defaults to None.
        batch_size (int, optional): The only batch size that the file takes.
            Defaults to None, 1.
        target (str, optional): 'executorch' and nothing else. Defaults to
            None, the same.

    Returns:
        ExportReport: Sizes, latencies, parity, bits and which layers XNNPACK
        computes on integers.

    Raises:
        ValueError: If something cannot be exported, or this torch has not
            what is needed; the message names it.
        TypeError: If ``batch_size`` is not an integer.
        ParityError: If the exported model answers otherwise.
        FileNotFoundError: If there is no folder for the file.
        ImportError: If executorch is missing, or for another torch.
    """
    PTE.require_packages()
    require_operators()
    refuse_other_torch()
    rules = EXECUTORCH if target is None else target_of(target)
    path = checked_path(path, batch_size, rules)
    size = batch_size or 1
    model = unwrapped(model)
    with kept_modes(model):
        model.eval()
        example, batches = compared_batches(batches, size)
        lowered = lower(build_program(model, example, size, target=rules))
        kernels = find_kernels(model, lowered)
        content = content_of(lowered)
        run = OpenedContent(content)
        moved = moved_weights(model, example, rules)
        parity, = measure_parity(model, [run], batches)
        parity.refuse(tolerance, moved)
        in_float = content_of(lower(build_program(
            model, example, size, quantized=False)))
    times = latencies([run, OpenedContent(in_float)],
                      some_images(example, size))
    write_whole(path, lambda file: file.write(content))
    return ExportReport(
        str(path), len(content), len(in_float), None, parity,
        (Latency(size, *times), ), exported_layers(model),
        target=rules.title, batch_size=size, kernels=kernels,
        moved_weights=moved)


def check_executorch(model: nn.Module, example: Tensor,
                     target: str | None = None) -> None:
    """Lower the model in memory: what cannot be exported raises.

    Args:
        model (nn.Module): In eval mode, takes and returns one tensor.
        example (Tensor): An input, (N, ...).
        target (str, optional): 'executorch'. Defaults to None, the same.

    Raises:
        ValueError: If something cannot be exported; the message names it.
        ImportError: If executorch is for another torch.
    """
    refuse_other_torch()
    lower(build_program(model, example, 1, target=EXECUTORCH))


# -- ExecuTorch -----------------------------------------------------------

def refuse_other_torch() -> None:
    """Run a program of one operation: a wheel names no torch, and needs one.

    Raises:
        ImportError: If it does not run; the message names the release that
            should.
    """
    x = torch.ones(1, 2)
    try:
        OpenedContent(content_of(lower(
            torch.export.export(nn.ReLU(), (x, )))))(x)
    except (ImportError, RuntimeError, ValueError) as error:
        release = torch.__version__.split('+')[0]
        # 1.0 came with torch 2.9, and each release since with one of torch.
        number = int(release.split('.')[1]) - 9
        raise ImportError(
            f'executorch {version("executorch")} does not run beside torch '
            f'{release}, as each is built for one torch: pip install '
            f"'executorch==1.{number}.*' ({str(error).splitlines()[0]})"
        ) from error


def lower(program: Any) -> Any:
    """Give XNNPACK what it takes of a program.

    Args:
        program (torch.export.ExportedProgram): What
            :func:`.program.build_program` made for one batch size.

    Returns:
        executorch.exir.EdgeProgramManager: The rest, with calls of XNNPACK.

    Raises:
        ValueError: If ExecuTorch does not take it.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackPartitioner,
    )
    from executorch.exir import to_edge_transform_and_lower

    try:
        with _flatc():
            return to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()])
    except Exception as error:
        raise ValueError('not exported: ExecuTorch does not lower it: '
                         f'{error}') from error


def content_of(lowered: Any) -> bytes:
    """The bytes of a lowered program's file."""
    with _flatc():
        return bytes(lowered.to_executorch().buffer)


class OpenedContent:
    """A file in ExecuTorch's runtime, with torch's thread count.

    Args:
        content (bytes): The content of a ``.pte`` file.
    """

    def __init__(self, content: bytes) -> None:
        from executorch.extension.pybindings.portable_lib import (
            _unsafe_reset_threadpool,
        )
        from executorch.runtime import Runtime

        _unsafe_reset_threadpool(torch.get_num_threads())
        self._content = content  # the runtime reads it where it lies
        program = Runtime.get().load_program(content)
        self._method = program.load_method('forward')

    def __call__(self, x: Tensor) -> Tensor:
        """The model's output for an input of the file's shape."""
        # The next call writes to the same place.
        return self._method.execute([x.contiguous()])[0].clone()

    def batch_size(self) -> int:
        """The only one that the file takes."""
        return self._method.metadata.input_tensor_meta(0).sizes()[0]


@contextmanager
def _flatc() -> Iterator[None]:
    """Inside, ExecuTorch finds the compiler that its wheel brings.

    It looks on PATH, where an environment's own folder need not be.
    """
    if FLATC in os.environ or which('flatc'):
        yield
        return
    with as_file(files('executorch') / 'data' / 'bin' / 'flatc') as path:
        os.environ[FLATC] = str(path)
        try:
            yield
        finally:
            del os.environ[FLATC]


def open_executorch(path: str | os.PathLike,
                    engine: str | None = None) -> OpenedFile:
    """Open a ``.pte`` file in ExecuTorch, see :meth:`.FileFormat.open`."""
    refuse_other_torch()
    run = OpenedContent(Path(path).read_bytes())
    return OpenedFile(run, EXECUTORCH.title, run.batch_size())


PTE = register_format(FileFormat(
    name='ExecuTorch',
    endings=('.pte', ),
    packages=('executorch', 'torchao'),
    extra='executorch',
    check=check_executorch,
    write=export_executorch,
    takes_target=True,
    engine=EXECUTORCH.name,
    runs_in=(EXECUTORCH.name, ),
    open_in=open_executorch))
