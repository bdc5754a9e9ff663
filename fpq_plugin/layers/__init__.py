"""Quantized layers: the mixin, the registered types, attention, routing."""

from .attention_products import AttentionProducts
from .attention_projections import InProjection, QuantizedInProjection
from .backends import Backend, get_backend, register_backend
from .computed_weights import copy_module, find_weight, read_weight, sources
from .derived_layers import quantized_type, why_float
from .heads import is_in_head, predicting
from .quantized_layer import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedLayer,
    QuantizedLinear,
    quantizable_types,
    quantized_layers,
    register_layer,
)
from .rewriting import (
    allow_reparameterizing,
    branches,
    refuse_bypassing,
    refuse_lazy,
    refuse_reparameterizing,
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
    'allow_reparameterizing', 'branches', 'copy_module', 'find_weight',
    'get_backend', 'is_in_head', 'predicting', 'quantizable_types',
    'quantized_layers', 'quantized_type', 'read_weight',
    'refuse_bypassing', 'refuse_lazy', 'refuse_reparameterizing',
    'register_attention', 'register_backend', 'register_layer',
    'register_weight_reader', 'route', 'route_attention', 'sources',
    'unroute', 'why_float'
]
