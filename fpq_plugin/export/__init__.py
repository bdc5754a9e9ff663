"""From a trained model to integers that run.

Needs onnx and onnxruntime (the extra ``export``).
"""

from .checkpoint import export_checkpoint
from .onnx_file import export_onnx
from .parity import Parity, ParityError
from .report import ExportReport
from .torch_int8 import to_torch_int8

__all__ = [
    'ExportReport', 'Parity', 'ParityError', 'export_checkpoint',
    'export_onnx', 'to_torch_int8'
]
