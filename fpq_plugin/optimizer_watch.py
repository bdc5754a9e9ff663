"""What is done around an optimizer's step.

An optimizer that was made before :func:`~fpq_plugin.convert` does not have the
parameters that came with it: the steps stay as calibrated, and no number
looks wrong. So it is told of. And steps that are learned in the logarithm are
kept from changing by more than a little at once: a model that calibration
left at chance has gradients of any size.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ._compat.versions import is_compiling
from .param_groups import quantizer_parameters
from .quantizers import named_quantizers

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


def changes_at_most(model: nn.Module) -> dict[Tensor, float]:
    """Parameters of the quantizers whose change an update is bounded.

    Args:
        model (nn.Module): A converted model.

    Returns:
        dict: From parameter to the bound.
    """
    return {
        quantizer.log_scale: quantizer.max_change
        for quantizer in named_quantizers(model).values()
        if hasattr(quantizer, 'max_change')
    }


def bound_changes(optimizer: Optimizer,
                  bounds: Mapping[Tensor, float]) -> list[Any]:
    """Bound what one step of an optimizer does to parameters.

    Each element is at most the bound away from where it was before the step,
    whatever the optimizer, its momentum and its rate are.

    Args:
        optimizer (Optimizer): The optimizer.
        bounds (Mapping): From parameter to its bound, others left out.

    Returns:
        list: Handles; ``remove()`` of each ends it.
    """
    parameters: list[Tensor] = []
    old: list[Tensor] = []

    def remember(*_: Any) -> None:
        parameters[:] = [
            parameter for group in optimizer.param_groups
            for parameter in group['params']
            if parameter in bounds and parameter.grad is not None
        ]
        old[:] = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def clamp(*_: Any) -> None:
        if parameters:
            most = [bounds[parameter] for parameter in parameters]
            torch._foreach_maximum_(parameters, torch._foreach_sub(old, most))
            torch._foreach_minimum_(parameters, torch._foreach_add(old, most))

    return [optimizer.register_step_pre_hook(remember),
            optimizer.register_step_post_hook(clamp)]


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
    if step == 1:
        own = _parameters(optimizer)
        bounds = {
            parameter: most for model in list(_models)
            for parameter, most in changes_at_most(model).items()
            if id(parameter) in own
        }
        if bounds:
            bound_changes(optimizer, bounds)
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
