"""FPQ on a model that its user built of Brevitas layers."""

from __future__ import annotations

import itertools
from typing import Any

from brevitas.nn import QuantConv2d, QuantLinear
from brevitas.proxy import ActQuantProxyFromInjector
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from torch import nn

from fpq_plugin.layers import copy_module, refuse_reparameterizing
from fpq_plugin.options import build, resolve
from fpq_plugin.perturbation import NoiseClock, StochasticFeaturePerturbation
from fpq_plugin.presets import SFP
from fpq_plugin.quantizers import Quantizer

from .convolutions import BrevitasConv2d
from .layers import BrevitasLinear, settle_proxy, tensor_quant_of
from .stock import StockQuantizer
from .tensor_quant import ActTensorQuant, TensorQuant

_TYPES = {QuantConv2d: BrevitasConv2d, QuantLinear: BrevitasLinear}
# What a float layer has of its own; on 'meta' no random number is drawn.
_FLOAT = {
    QuantConv2d: frozenset(vars(nn.Conv2d(1, 1, 1, device='meta'))),
    QuantLinear: frozenset(vars(nn.Linear(1, 1, device='meta'))),
}


def adopt(model: nn.Module, perturbation: dict | None = None) -> None:
    """Make a model of Brevitas's layers one that FPQ trains, in place.

    Every quantizer stays what it is, its scale as calibrated. Layers of type
    ``QuantConv2d`` and ``QuantLinear`` can be distilled from then on;
    activations, of those layers' inputs and of ``QuantReLU`` and the like,
    get SFP.

    Args:
        model (nn.Module): The model.
        perturbation (dict, optional): Config of SFP. Defaults to None, off.

    Raises:
        ValueError: If an option is wrong, if a layer shares its quantizer
            with another, if a quantizer is none to integers of 2 to 8 bits,
            or if there is no such layer.
    """
    cfg = resolve('perturbation', perturbation, SFP['type'],
                  kind=StochasticFeaturePerturbation)
    layers = {n: m for n, m in model.named_modules() if type(m) in _TYPES}
    if not layers:
        raise ValueError('nothing to adopt: the model has no layer of the '
                         f'types {", ".join(t.__name__ for t in _TYPES)}')
    taken = {id(layer.input_quant) for layer in layers.values()}
    acts = {
        name: proxy
        for name, proxy in model.named_modules()
        if type(proxy) is ActQuantProxyFromInjector
        and proxy.is_quant_enabled and id(proxy) not in taken
    }
    found = {
        name: (_quantizer(f'{name}.weight_quant', layer.weight_quant, layer,
                          tensor_quant_of(layer, True), True),
               _quantizer(f'{name}.input_quant', layer.input_quant, layer,
                          tensor_quant_of(layer, False), False))
        for name, layer in layers.items()
    }
    outside: dict[str, Any] = {
        name: _quantizer(name, proxy, proxy,
                         proxy.fused_activation_quant_proxy.tensor_quant,
                         False)
        for name, proxy in acts.items()
    }
    clock, numbers = NoiseClock(), itertools.count()

    def noise() -> nn.Module | None:
        if cfg is None:
            return None
        part = build('perturbation', cfg)
        part.set_clock(clock, next(numbers))
        return part

    for name, layer in layers.items():
        weight, inputs = found[name]
        kind, layer.float_attributes = _TYPES[type(layer)], _FLOAT[type(layer)]
        layer.__class__ = kind
        kind.attach(layer, weight, inputs, noise() if inputs else None)
    device = next(model.parameters()).device
    for name, proxy in acts.items():
        proxy.fused_activation_quant_proxy.tensor_quant = ActTensorQuant(
            outside[name], noise()).to(device)
        settle_proxy(proxy, device)
        proxy.train(proxy.training)
    if cfg is not None:
        model.register_forward_pre_hook(clock.start_forward)
    refuse_reparameterizing(model)


def float_twin(model: nn.Module) -> nn.Module:
    """A copy of a Brevitas model that quantizes nothing, for a teacher.

    Args:
        model (nn.Module): The model, before :func:`adopt`.

    Returns:
        nn.Module: The copy; the names of its layers are the same.
    """
    twin = copy_module(model)
    for module in twin.modules():
        if isinstance(module, QuantProxyFromInjector):
            module.disable_quant = True
        if hasattr(module, 'return_quant_tensor'):
            module.return_quant_tensor = False
    return twin


def _quantizer(name: str, proxy: QuantProxyFromInjector, owner: nn.Module,
               tensor_quant: nn.Module | None,
               of_weight: bool) -> Quantizer | None:
    """The quantizer under a proxy, None if there is none."""
    if tensor_quant is None or not proxy.is_quant_enabled:
        return None
    if len(proxy.tracked_module_list) > 1:
        raise ValueError(f'{name}: FPQ cannot train a quantizer that layers '
                         'share; give each layer its own')
    if isinstance(tensor_quant, TensorQuant):
        return tensor_quant.quantizer
    try:
        return StockQuantizer.around(tensor_quant, owner, of_weight)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error
