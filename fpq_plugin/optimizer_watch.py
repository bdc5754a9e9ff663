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
from .quantizers import log_quantizers

PATIENCE = 10
"""Steps of an optimizer before it is looked at: another may have the rest."""

_models: WeakSet[nn.Module] = WeakSet()
_steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
_bounded: WeakKeyDictionary[Optimizer, tuple[set[int], list]] = (
    WeakKeyDictionary())


def watch(model: nn.Module) -> None:
    """Have the optimizers looked at that will train ``model``.

    Args:
        model (nn.Module): A converted model.
    """
    look_at_optimizers()
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


def bound_changes(optimizer: Optimizer,
                  bounds: Mapping[Tensor, float]) -> list[Any]:
    """Bound what one step of an optimizer does to parameters.

    Each element is at most the bound away from where it was before the step,
    whatever the optimizer, its momentum and its rate are.

    Args:
        optimizer (Optimizer): The optimizer.
        bounds (Mapping): From parameter to its bound, not empty.

    Returns:
        list: Handles; ``remove()`` of each ends it.
    """
    parameters, most = list(bounds), list(bounds.values())
    old: list[Tensor] = []

    def remember(*_: Any) -> None:
        old[:] = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def clamp(*_: Any) -> None:
        torch._foreach_maximum_(parameters, torch._foreach_sub(old, most))
        torch._foreach_minimum_(parameters, torch._foreach_add(old, most))

    return [optimizer.register_step_pre_hook(remember),
            optimizer.register_step_post_hook(clamp)]


@functools.cache
def look_at_optimizers() -> None:
    """Have every optimizer of the process looked at before its steps."""
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if is_compiling():
        return
    bound_steps(optimizer)
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


def bound_steps(optimizer: Optimizer) -> None:
    """Bound what an optimizer does to the steps that it trains.

    Called before each step of any optimizer, once a model was converted.
    Copies of a model, and parameters that join later, are found as well.

    Args:
        optimizer (Optimizer): The optimizer.
    """
    own = _parameters(optimizer)
    known, handles = _bounded.get(optimizer, (set(), []))
    if own == known:
        return
    for handle in handles:
        handle.remove()
    bounds = {
        quantizer.log_scale: quantizer.max_change
        for quantizer in log_quantizers() if id(quantizer.log_scale) in own
    }
    _bounded[optimizer] = own, (
        bound_changes(optimizer, bounds) if bounds else [])


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups
            for p in group['params']}
