"""The backend's name, and its quantizers by name."""

from __future__ import annotations

from typing import Any

from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import QuantType
from brevitas.proxy import (
    ActQuantProxyFromInjector,
    WeightQuantProxyFromInjector,
)
from brevitas.quant import fixed_point, scaled_int, shifted_scaled_int
from mmengine.registry import MODELS, Registry

from fpq_plugin.layers import Backend, register_backend

from .stock import StockQuantizer

BREVITAS = register_backend(
    Backend(
        'brevitas',
        weight=Registry(
            'brevitas weights', parent=MODELS, scope='brevitas_weight'),
        activation=Registry(
            'brevitas activations', parent=MODELS,
            scope='brevitas_activation')))


def register_injector(
        injector: type[ExtendedInjector]) -> type[ExtendedInjector]:
    """Class decorator: configs may name this Brevitas quantizer.

    Args:
        injector (type): Quantizer of integers, of weights or activations,
            with Brevitas's own proxy for them.

    Returns:
        type: The same class.

    Raises:
        ValueError: If its ``proxy_class`` is another one.
    """
    proxy = injector.proxy_class
    if proxy is WeightQuantProxyFromInjector:
        registry = BREVITAS.weight
    elif proxy is ActQuantProxyFromInjector:
        registry = BREVITAS.activation
    else:
        raise ValueError(f'{injector.__name__}: FPQ takes quantizers whose '
                         'proxy_class is WeightQuantProxyFromInjector or '
                         f'ActQuantProxyFromInjector, not {proxy.__name__}')
    quantizer: Any = type(injector.__name__, (StockQuantizer, ),
                     dict(__doc__=injector.__doc__))
    # After the class is made: ABCMeta cannot look into an injector.
    quantizer.injector = injector
    registry.register_module(module=quantizer)
    return injector


def _register_stock() -> None:
    """Brevitas's quantizers to integers that have a plain proxy."""
    for module in (scaled_int, shifted_scaled_int, fixed_point):
        for name in module.__all__:
            injector = getattr(module, name)
            if ('proxy_class' in injector and injector.proxy_class in (
                    WeightQuantProxyFromInjector, ActQuantProxyFromInjector)
                    and injector.quant_type == QuantType.INT):
                register_injector(injector)


_register_stock()
