"""Others that rewrite layers: fusing a batch norm or branches, giving a norm.

They read a latent weight, which is in full precision, and put another in its
place, or compute with it. The steps stay those of the old one.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
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


# -- branches that become one layer: RepVGG, MobileOne, RepLKNet ----------
#
# Quantized branches have steps of their own, and their sum is not that of the
# one layer.

_MERGE_BRANCHES = ('switch_to_deploy', 'merge_kernel', 'reparameterize')
_FUSE = (*_MERGE_BRANCHES, 'fuse', 'fuse_model', 'fuse_conv_bn',
         'convert_to_deploy')
# Blocks have a branch's layer not deeper than in a list of sequences.
_DEPTH = 3


def refuse_reparameterizing(model: nn.Module) -> None:
    """Make fusing in blocks of quantized layers an error.

    The blocks' own methods read the layers' latent weights and make plain
    layers of them, without a word of the quantizers.

    Args:
        model (nn.Module): A converted model.
    """
    for module in model.modules():
        methods = _methods(module, _FUSE)
        if methods and any(isinstance(part, KeepsItsWeight)
                           for part in module.modules()):
            for name in methods:
                vars(module).setdefault(
                    name, functools.partial(_refuse_to_fuse, name))


def allow_reparameterizing(model: nn.Module) -> None:
    """Undo :func:`refuse_reparameterizing`."""
    for module in model.modules():
        for name in _FUSE:
            found = vars(module).get(name)
            if getattr(found, 'func', None) is _refuse_to_fuse:
                del vars(module)[name]


def branches(model: nn.Module,
             layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Layers that stand side by side in a block that is to be fused.

    Args:
        model (nn.Module): The model.
        layers (Mapping[str, nn.Module]): Layers of it by name.

    Returns:
        dict: From the name of each such block to the names of two or more
        layers that read its input, in order.
    """
    blocks = [
        name for name, module in model.named_modules()
        if _methods(module, _MERGE_BRANCHES)
    ]
    inside: dict[tuple, list[str]] = {}
    for name, layer in layers.items():
        if not hasattr(layer, 'in_channels'):
            continue
        holders = [b for b in blocks if not b or name.startswith(f'{b}.')]
        block = max(holders, key=len, default=None)
        if block is None or name[len(block):].strip('.').count(
                '.') >= _DEPTH:
            continue
        alike = (layer.in_channels, layer.out_channels, layer.stride,
                 layer.groups)
        inside.setdefault((block, alike), []).append(name)
    return {
        block: names
        for (block, _), names in inside.items() if len(names) > 1
    }


def _methods(module: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Which of the methods a module has, to be called without arguments."""
    found = []
    for name in names:
        method = getattr(type(module), name, None)
        # One that takes arguments fuses features.
        if inspect.isfunction(method) and _takes_nothing(method):
            found.append(name)
    return found


def _takes_nothing(method: Callable) -> bool:
    rest = list(inspect.signature(method).parameters.values())[1:]
    return all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL,
                                               p.VAR_KEYWORD) for p in rest)


def _refuse_to_fuse(method: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(
        f'{method}: the branches are quantized, each with its own steps, and '
        f'fusing them would drop that. {WAY_OUT}')
