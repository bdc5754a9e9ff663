from importlib.util import find_spec

from .conv import QuantizedConv2d
from .linear import QuantizedLinear
from .quantized_layer import (
                              QuantizedLayer,
                              quantizable_types,
                              quantized_layers,
                              quantized_type,
                              register_layer,
)

if find_spec('mmcv') is not None:
    from . import mmcv_wrappers  # noqa: F401

__all__ = [
    'QuantizedConv2d', 'QuantizedLayer', 'QuantizedLinear',
    'quantizable_types', 'quantized_layers', 'quantized_type',
    'register_layer'
]
