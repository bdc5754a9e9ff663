"""From a trained model to integers that run.

Needs onnx and onnxruntime (the extra ``export``).
"""

from .checkpoint import export_checkpoint
from .onnx_file import export_onnx
from .parity import Parity, ParityError
from .report import ExportReport

__all__ = [
    'ExportReport', 'Parity', 'ParityError', 'export_checkpoint',
    'export_onnx'
]
