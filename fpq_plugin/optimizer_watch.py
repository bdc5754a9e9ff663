"""A word on optimizers that train a model's weights and not its steps.

An optimizer that was made before :func:`~fpq_plugin.convert` does not have the
parameters that came with it: the steps stay as calibrated, and no number
looks wrong.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ._compat.versions import is_compiling
from .param_groups import quantizer_parameters

PATIENCE = 10
"""Steps of an optimizer before it is looked at: another may have the rest."""

_models: WeakSet[nn.Module] = WeakSet()
_steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()


def watch(model: nn.Module) -> None:
    """Have the optimizers looked at that will train ``model``.

    Args:
        model (nn.Module): A converted model.
    """
    _install()
    _models.add(model)


def forgotten(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Learned parameters of quantizers that wait for an optimizer.

    Args:
        model (nn.Module): A converted model.
        optimizer (Optimizer): One that trains it, perhaps beside others.

    Returns:
        list[str]: Names of those that have a gradient and are in no optimizer
        that has stepped, though ``optimizer`` trains what they quantize.
    """
    own = _parameters(optimizer)
    if not any(id(p) in own for p in model.parameters()):
        return []
    known = own.union(*map(_parameters, list(_steps)))
    return [
        name for name, parameter in quantizer_parameters(model).items()
        if parameter.requires_grad and parameter.grad is not None
        and id(parameter) not in known
    ]


@functools.cache
def _install() -> None:
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if is_compiling():
        return
    step = _steps.get(optimizer, 0) + 1
    if step > PATIENCE:
        return
    _steps[optimizer] = step
    if step < PATIENCE:
        return
    for model in list(_models):
        names = forgotten(model, optimizer)
        if names:
            warnings.warn(
                f'FPQ: {type(optimizer).__name__} trains the weights of the '
                f'model but not {len(names)} learned parameters of its '
                f'quantizers, {names[0]} first: it was made before '
                'convert(model), or without them. Make it after convert, '
                'from fpq_plugin.param_groups(model, lr=...)',
                stacklevel=2)


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups
            for p in group['params']}
