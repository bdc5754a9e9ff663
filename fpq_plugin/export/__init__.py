"""From a trained model to integers that run.

A model goes through :mod:`.build` (with :mod:`.integers`, :mod:`.lowering`,
:mod:`.features`, :mod:`.filling`, :mod:`.folding` and :mod:`.rewriting`) to
an ONNX model, which :mod:`.runtime` runs, :mod:`.parity` compares with the
trained one, :mod:`.kernels` looks at as onnxruntime rewrites it,
:mod:`.onnx_file` writes and :mod:`.report` describes. :mod:`.formats` has the
kinds of files, :mod:`fpq_plugin.cli` is ``fpq export``. :mod:`.program` makes
a program of torch.export (:mod:`.program_norms`, :mod:`.program_layout`),
which :mod:`.exported_program` writes and :mod:`.executorch_file` lowers,
:mod:`.encodings` AIMET's encodings, for :mod:`.encodings_file`.
:mod:`.torch_int8` needs no file.

Importing this needs neither onnx nor onnxruntime; exporting to ONNX does (the
extra ``export``).
"""

from typing import TYPE_CHECKING, Any

# Each format's module registers it.
from .encodings_file import export_encodings
from .executorch_file import export_executorch
from .exported_program import export_program
from .formats import FileFormat, register_format
from .onnx_file import export_onnx
from .parity import Parity, ParityError
from .report import ExportReport
from .torch_int8 import to_torch_int8

if TYPE_CHECKING:
    from ..openmmlab.export_run import export_checkpoint

__all__ = [
    'ExportReport', 'FileFormat', 'Parity', 'ParityError',
    'export_checkpoint', 'export_encodings', 'export_executorch',
    'export_onnx', 'export_program',
    'register_format', 'to_torch_int8'
]


def __getattr__(name: str) -> Any:
    if name == 'export_checkpoint':  # it needs a config, and so OpenMMLab's
        from ..openmmlab.export_run import export_checkpoint
        return export_checkpoint
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
