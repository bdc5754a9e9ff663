"""Quantized layers: the mixin, the registered types, attention, routing."""

from .attention_products import AttentionProducts
from .attention_projections import InProjection, QuantizedInProjection
from .backends import Backend, get_backend, register_backend
from .conv_linear import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedLinear,
)
from .quantized_layer import (
    QuantizedLayer,
    allow_reparameterizing,
    quantizable_types,
    quantized_layers,
    quantized_type,
    refuse_reparameterizing,
    register_layer,
)
from .routing import (
    register_attention,
    register_weight_reader,
    route,
    route_attention,
    unroute,
)

__all__ = [
    'AttentionProducts', 'Backend', 'InProjection', 'QuantizedConv1d',
    'QuantizedConv2d', 'QuantizedConv3d', 'QuantizedConvTranspose1d',
    'QuantizedConvTranspose2d', 'QuantizedConvTranspose3d',
    'QuantizedInProjection', 'QuantizedLayer', 'QuantizedLinear',
    'allow_reparameterizing', 'get_backend', 'quantizable_types',
    'quantized_layers', 'quantized_type', 'refuse_reparameterizing',
    'register_attention', 'register_backend', 'register_layer',
    'register_weight_reader', 'route', 'route_attention', 'unroute'
]
