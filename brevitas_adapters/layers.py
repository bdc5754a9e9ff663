"""Brevitas's layers as FPQ's quantized layers."""

from __future__ import annotations

from copy import deepcopy

import torch
from brevitas.inject import ExtendedInjector
from brevitas.nn import QuantLinear
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from brevitas.quant_tensor import QuantTensor
from torch import Tensor, nn

from fpq_plugin._compat.tracing import is_exporting, whole_call
from fpq_plugin.layers import InProjection, QuantizedLayer, register_layer
from fpq_plugin.layers.attention_projections import linear_rows
from fpq_plugin.layers.computed_weights import (
    at_rest,
    read_weight,
    without_graph,
)
from fpq_plugin.quantizers import Quantizer

from .backend import BREVITAS
from .stock import StockQuantizer
from .tensor_quant import (
    LayerTensorQuant,
    LSQActPerTensor,
    LSQWeightPerChannel,
)

_PROXIES = ('weight_quant', 'input_quant', 'bias_quant', 'output_quant')


class BrevitasLayer(QuantizedLayer):
    """A Brevitas layer whose proxies use the quantizers that FPQ gave it.

    ``layer.weight_quant`` and ``layer.input_quant`` are Brevitas's proxies;
    the quantizers are the layer's children, as with the other backend.
    """

    @classmethod
    def swap(cls,
             layer: nn.Module,
             weight_quantizer: Quantizer | None,
             input_quantizer: Quantizer | None,
             perturbation: nn.Module | None = None) -> None:
        for quantizer in (weight_quantizer, input_quantizer):
            if not getattr(quantizer, 'integer_zero_point', True):
                raise ValueError(
                    f'{type(quantizer).__name__} has no integer zero point, '
                    "which Brevitas needs: take backend='torch_ao', or "
                    'another quantizer')
        if perturbation is not None and perturbation.of_weight:
            raise ValueError(f'{type(perturbation).__name__} needs '
                             "backend='torch_ao'")
        known = frozenset(vars(layer))
        layer.__class__ = cls
        with at_rest(layer):
            _give_proxies(layer, weight_quantizer, input_quantizer)
        layer.float_attributes = known
        for quantizer, of_weight in ((weight_quantizer, True),
                                     (input_quantizer, False)):
            if isinstance(quantizer, StockQuantizer):
                quantizer.bind(tensor_quant_of(layer, of_weight), layer,
                               of_weight)
        cls.attach(layer, weight_quantizer, input_quantizer, perturbation)

    @classmethod
    def attach(cls,
               layer: nn.Module,
               weight_quantizer: Quantizer | None,
               input_quantizer: Quantizer | None,
               perturbation: nn.Module | None = None) -> None:
        """Let the proxies of a Brevitas layer use these quantizers."""
        _settle_proxies(layer, weight_quantizer, input_quantizer,
                        read_weight(layer).device)
        super().swap(layer, weight_quantizer, input_quantizer, perturbation)

    def unswap(self) -> None:
        for name in _PROXIES:
            delattr(self, name)
        # A norm of weights that came later keeps its weight.
        for name in set(vars(self)) - self.float_attributes - {'weight'}:
            delattr(self, name)
        super().unswap()

    def __deepcopy__(self, memo):
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        copy.__dict__.update(deepcopy(without_graph(vars(self)), memo))
        return copy

    def __reduce_ex__(self, protocol):
        quantizers = self.weight_quantizer, self.input_quantizer
        if any(isinstance(q, StockQuantizer) for q in quantizers):
            raise TypeError(
                f"{type(self).__name__}: Brevitas's own quantizers cannot be "
                'pickled: save state_dict() in place of the whole model')
        make, args, state, *rest = super().__reduce_ex__(protocol)
        # Proxies hold classes made at run time: complete() makes them anew.
        keep = self.float_attributes | {'float_attributes', 'weight'}
        state = {key: state[key] for key in keep if key in state}
        state['_modules'] = {
            name: module for name, module in state['_modules'].items()
            if name not in _PROXIES
        }
        return make, args, state, *rest

    def __setstate__(self, state):
        super().__setstate__(state)
        self.complete()

    def complete(self) -> None:
        children = vars(self).get('_modules', {})
        if 'weight_quantizer' not in children or 'weight_quant' in children:
            return
        if '_parameters' not in vars(self.weight_source()[0]):
            return
        quantizers = self.weight_quantizer, self.input_quantizer
        _give_proxies(self, *quantizers)
        _settle_proxies(self, *quantizers, read_weight(self).device)
        for name in ('weight_quantizer', 'input_quantizer', 'perturbation'):
            children[name] = children.pop(name)  # in the order of swap

    def merge_bn_in(self, bn: nn.Module) -> None:
        """Refused, as fusing: it would scale the weight under its steps."""
        self.refuse_if_calibrated()
        super().merge_bn_in(bn)

    def quant_weight(self, *args, **kwargs):
        if self.weight_quantizer is None:
            # Brevitas takes 'weight_orig' then, which norms compute with.
            return self.weight
        return super().quant_weight(*args, **kwargs)

    def forward(self, x: Tensor | QuantTensor) -> Tensor:
        return self.forward_impl(x)

    def forward_impl(self, inp: Tensor | QuantTensor) -> Tensor:
        whole = whole_call(self, (inp, ), {})
        if whole is not None:
            return whole
        if not _in_torch_export() or self.bias_quant.is_quant_enabled or (
                self.output_quant.is_quant_enabled):
            return super().forward_impl(inp)
        return self.inner_forward_impl(
            self.quantized_input(inp), self.quantized_weight(self.weight),
            self.bias)

    def quantized_input(self, x: Tensor | QuantTensor) -> Tensor:
        if _in_torch_export():
            return self._quantized(x, self.input_quantizer, False)
        return _value(self.input_quant(self.unpack_input(x)))

    def quantized_weight(self, weight: Tensor) -> Tensor:
        if _in_torch_export():
            return self._quantized(weight, self.weight_quantizer, True)
        return _value(self.weight_quant(weight))

    def inner_forward_impl(self, x: Tensor | QuantTensor,
                           quant_weight: Tensor | QuantTensor,
                           quant_bias: Tensor | QuantTensor | None) -> Tensor:
        if not self.return_quant_tensor:
            # Nobody asks for the output's scale and zero point.
            x, quant_weight, quant_bias = map(_value,
                                              (x, quant_weight, quant_bias))
        return super().inner_forward_impl(x, quant_weight, quant_bias)


@register_layer(nn.Linear, BREVITAS.name)
class BrevitasLinear(BrevitasLayer, QuantLinear):
    """``brevitas.nn.QuantLinear`` in FPQ; features are (..., C)."""

    channel_axis = -1


@register_layer(InProjection, BREVITAS.name)
class BrevitasInProjection(BrevitasLayer, QuantWeightBiasInputOutputLayer,
                           InProjection):
    """An attention's input projection on Brevitas's quantizers."""

    channel_axis = -1
    output_channel_dim = 0
    per_elem_ops = None  # Brevitas's raises, and torch.jit.trace reads it

    def weight_source(self) -> tuple[nn.Module, str]:
        return self._attention[0], self._weight_name

    def forward(self,
                x: Tensor | QuantTensor,
                rows: slice = slice(None)) -> Tensor:
        whole = whole_call(self, (x, rows), {})
        if whole is not None:
            return whole
        self._rows = rows
        return self.forward_impl(x)

    def inner_forward_impl(self, x: Tensor | QuantTensor,
                           quant_weight: Tensor | QuantTensor,
                           quant_bias: Tensor | QuantTensor | None) -> Tensor:
        return linear_rows(_value(x), _value(quant_weight), _value(quant_bias),
                           self._rows)


class _Zero(nn.Module):
    """The 0 on the layer's device that a proxy asks its scale with.

    In place of Brevitas's, which is in the checkpoints that mmengine writes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('value', torch.tensor(0.0), persistent=False)

    def forward(self) -> Tensor:
        return self.value


def _injector(quantizer: Quantizer | None,
              lsq: type[ExtendedInjector]) -> type[ExtendedInjector] | None:
    """What tells Brevitas how to make the proxy of ``quantizer``."""
    if quantizer is None:
        return None
    if isinstance(quantizer, StockQuantizer):
        return quantizer.injector.let(
            bit_width=quantizer.num_bits, **quantizer.let)
    return lsq.let(
        bit_width=quantizer.num_bits, signed=quantizer.signed,
        narrow_range=getattr(quantizer, 'narrow_range', False))


def _give_proxies(layer: nn.Module, weight_quantizer: Quantizer | None,
                  input_quantizer: Quantizer | None) -> None:
    """Let Brevitas make the proxies of a layer."""
    QuantWeightBiasInputOutputLayer.__init__(
        layer,
        weight_quant=_injector(weight_quantizer, LSQWeightPerChannel),
        bias_quant=None,
        input_quant=_injector(input_quantizer, LSQActPerTensor),
        output_quant=None,
        return_quant_tensor=False)


def _settle_proxies(layer: nn.Module, weight_quantizer: Quantizer | None,
                    input_quantizer: Quantizer | None,
                    device: torch.device) -> None:
    """Let the proxies of a layer use its own quantizers."""
    if weight_quantizer is not None:
        layer.weight_quant.tensor_quant = LayerTensorQuant(layer, True)
    if input_quantizer is not None:
        fused = layer.input_quant.fused_activation_quant_proxy
        fused.tensor_quant = LayerTensorQuant(layer, False)
    for name in _PROXIES:
        proxy = getattr(layer, name)
        proxy.train(layer.training)
        settle_proxy(proxy, device)


def _in_torch_export() -> bool:
    """There Brevitas's proxies ask what a graph's stand-in cannot tell."""
    return is_exporting() and not torch.jit.is_tracing()


def _value(x: Tensor | QuantTensor | None) -> Tensor | None:
    return x.value if isinstance(x, QuantTensor) else x


def tensor_quant_of(layer: nn.Module, of_weight: bool) -> nn.Module | None:
    """The tensor quantizer of a Brevitas layer's weight or input, if any."""
    if of_weight:
        return layer.weight_quant.tensor_quant
    fused = layer.input_quant.fused_activation_quant_proxy
    return None if fused is None else fused.tensor_quant


def settle_proxy(proxy: nn.Module, device: torch.device) -> None:
    """Keep a proxy's tensor quantizer, and its dummy input off the state."""
    proxy.init_tensor_quant = _keep
    proxy._zero_hw_sentinel = _Zero().to(device)


def _keep() -> None:
    """In place of a proxy's ``init_tensor_quant``.

    Brevitas calls that after each ``load_state_dict`` and makes all modules
    and parameters anew, which leaves the optimizer with dead ones.
    """
