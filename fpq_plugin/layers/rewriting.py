"""Others that rewrite a layer: fusing a batch norm into it, giving it a norm.

They read its latent weight, which is in full precision, and put another in
its place, or compute with it. The steps stay those of the old one.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NoReturn

from torch import nn
from torch.nn.parameter import is_lazy

WAY_OUT = ('Fuse the full-precision model and train that with FPQ, or take '
           'the quantizers off by fpq_plugin.to_float first')


class KeepsItsWeight(nn.Module):
    """Mixin: a calibrated layer refuses another weight than it has.

    In-place changes (training, averages, ``load_state_dict`` also with
    ``assign=True``), moves, copies and data-parallel wrappers are none.
    """

    weight_quantizer: Any
    _loads = False

    def __setattr__(self, name: str, value: Any) -> None:
        if (name == 'weight' and self._is_new_weight(value)
                and not _is_sharding(sys._getframe(1))):
            self.refuse_if_calibrated()
        if name == 'forward':
            function = getattr(value, 'func', None)
            if getattr(function, '__name__', '').startswith(
                    'efficient_conv_bn_eval'):
                refuse_bypass(type(self).__name__)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if (name == 'weight' and self._own_weight() is not None
                and not _is_sharding(sys._getframe(1))):
            self.refuse_if_calibrated()
        super().__delattr__(name)

    def _is_new_weight(self, value: Any) -> bool:
        own = self._own_weight()
        if value is own or self._loads:
            return False
        # Hooks of weight_norm and its like set a plain tensor.
        return own is not None or (
            'weight' in vars(self) and isinstance(value, nn.Parameter))

    def _own_weight(self) -> nn.Parameter | None:
        return vars(self).get('_parameters', {}).get('weight')

    def refuse_if_calibrated(self) -> None:
        """Refuse to change the weight of a layer that has steps for it.

        Raises:
            RuntimeError: If the layer is calibrated.
        """
        if self._has_steps():
            _refuse_new_weight(type(self).__name__)

    def _has_steps(self) -> bool:
        quantizer = vars(self).get('_modules', {}).get('weight_quantizer')
        ready = getattr(quantizer, 'is_initialized', None)
        return bool(ready and ready() and not quantizer.is_idle())

    def _load_from_state_dict(self, *args, **kwargs):
        self._loads = True
        try:
            super()._load_from_state_dict(*args, **kwargs)
        finally:
            del self._loads


def _is_sharding(caller: FrameType) -> bool:
    """Whether FSDP puts shards or views of the same weight in its place."""
    return caller.f_globals.get('__name__', '').startswith(
        'torch.distributed.')


def _refuse_new_weight(kind: str) -> NoReturn:
    raise RuntimeError(
        f'{kind}: the layer is calibrated, and its steps are those of the '
        'weight that it has: it takes no other one, as from fusing a batch '
        'norm into it (fuse_conv_bn), a norm of weights, or tying it to '
        f'another layer. {WAY_OUT}')


def refuse_bypass(what: str) -> NoReturn:
    """Refuse forwards that compute around a layer's quantizers.

    Args:
        what (str): The layer's class, or the module's name.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f'{what}: efficient_conv_bn_eval computes the convolution and its '
        'batch norm from the latent weight, around the quantizers. Turn it '
        'off (turn_on_efficient_conv_bn_eval(False))')


def refuse_bypassing(model: nn.Module) -> None:
    """Refuse a model whose modules compute around their layers.

    Args:
        model (nn.Module): A model, not converted yet.

    Raises:
        ValueError: Naming the module.
    """
    for name, module in model.named_modules():
        if vars(module).get('efficient_conv_bn_eval_forward') is not None:
            refuse_bypass(name or type(module).__name__)


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a model with weights that are not there yet.

    Args:
        model (nn.Module): A model, not converted yet.

    Raises:
        ValueError: Naming the layers.
    """
    lazy = [
        f'{name or "the model"} ({type(module).__name__})'
        for name, module in model.named_modules()
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(),
                                              *module._buffers.values()))
    ]
    if lazy:
        raise ValueError(
            f'lazy layers have no weights yet: {", ".join(lazy)}. Run the '
            'model on a batch once, then convert it')

