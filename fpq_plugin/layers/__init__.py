from .conv import QuantizedConv2d
from .linear import QuantizedLinear
from .quantized_layer import (
                              QuantizedLayer,
                              quantizable_types,
                              quantized_layers,
                              quantized_type,
                              register_layer,
)

__all__ = [
    'QuantizedConv2d', 'QuantizedLayer', 'QuantizedLinear',
    'quantizable_types', 'quantized_layers', 'quantized_type',
    'register_layer'
]
