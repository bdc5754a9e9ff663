from importlib.util import find_spec

from .attention_products import AttentionProducts
from .conv import QuantizedConv1d, QuantizedConv2d, QuantizedConv3d
from .conv_transpose import (
                              QuantizedConvTranspose1d,
                              QuantizedConvTranspose2d,
                              QuantizedConvTranspose3d,
)
from .linear import QuantizedLinear
from .multihead_attention import InProjection, QuantizedInProjection
from .quantized_layer import (
                              QuantizedLayer,
                              quantizable_types,
                              quantized_layers,
                              quantized_type,
                              register_layer,
)
from .routing import (
                              register_attention,
                              register_weight_reader,
                              route,
                              route_attention,
                              unroute,
)

if find_spec('mmcv') is not None:
    from . import mmcv_wrappers  # noqa: F401

__all__ = [
    'AttentionProducts', 'InProjection', 'QuantizedConv1d', 'QuantizedConv2d',
    'QuantizedConv3d',
    'QuantizedConvTranspose1d', 'QuantizedConvTranspose2d',
    'QuantizedConvTranspose3d', 'QuantizedInProjection', 'QuantizedLayer',
    'QuantizedLinear', 'quantizable_types', 'quantized_layers',
    'quantized_type', 'register_attention', 'register_layer',
    'register_weight_reader', 'route', 'route_attention', 'unroute'
]
