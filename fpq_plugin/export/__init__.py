"""From a trained model to integers that run.

Needs onnx and onnxruntime (the extra ``export``).
"""

from typing import Any

from .onnx_file import export_onnx
from .parity import Parity, ParityError
from .report import ExportReport
from .torch_int8 import to_torch_int8

__all__ = [
    'ExportReport', 'Parity', 'ParityError', 'export_onnx', 'to_torch_int8'
]


def __getattr__(name: str) -> Any:
    if name == 'export_checkpoint':  # it needs a config, and so OpenMMLab's
        from ..openmmlab.export_run import export_checkpoint
        return export_checkpoint
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
