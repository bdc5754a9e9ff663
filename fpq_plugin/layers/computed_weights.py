"""Weights that a layer computes: by weight norm, a parametrization, a mask.

``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune`` compute the
attribute ``weight`` before each forward, so that between two forwards it may
be of other parameters than the layer has. ``parametrize`` computes it at each
access, and may change its own state then.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._compat.restoring import kept_modes

PARAMETRIZATIONS = 'parametrizations'
"""The child that ``torch.nn.utils.parametrize`` gives a layer."""


def is_computed(module: nn.Module, name: str = 'weight') -> bool:
    """Whether a module computes this tensor, rather than own it.

    Args:
        module (nn.Module): A module.
        name (str): Name of the tensor. Defaults to 'weight'.
    """
    return parametrize.is_parametrized(module, name) or (
        isinstance(vars(module).get(name), Tensor))


def sources(module: nn.Module, name: str = 'weight') -> list[nn.Parameter]:
    """The parameters that a module's tensor is, or is computed from.

    Args:
        module (nn.Module): A module.
        name (str): Name of the tensor. Defaults to 'weight'.
    """
    own = module._parameters.get(name)
    if own is not None:
        return [own]
    if parametrize.is_parametrized(module, name):
        return list(getattr(module, PARAMETRIZATIONS)[name].parameters())
    return [
        parameter for key, parameter in module._parameters.items()
        if parameter is not None and key.startswith(f'{name}_')
    ]


def read_weight(module: nn.Module, name: str = 'weight') -> Tensor:
    """A module's tensor, read without a change to the module.

    Power iterations of a parametrization make no step. Shape, device and
    dtype are right; values that a hook computes may be old.

    Args:
        module (nn.Module): A module.
        name (str): Name of the tensor. Defaults to 'weight'.
    """
    if not parametrize.is_parametrized(module, name):
        return getattr(module, name)
    with torch.no_grad(), at_rest(module):
        return getattr(module, PARAMETRIZATIONS)[name]()


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Inside, reads of a parametrized tensor leave its state as it is.

    Args:
        module (nn.Module): A module, parametrized or not.
    """
    if not parametrize.is_parametrized(module):
        yield
        return
    compute = getattr(module, PARAMETRIZATIONS)
    with kept_modes(compute):
        compute.eval()
        yield


def find_weight(module: nn.Module) -> Tensor | None:
    """A module's ``weight``, read as by :func:`read_weight`, if it has one."""
    if parametrize.is_parametrized(module, 'weight'):
        return read_weight(module)
    weight = getattr(module, 'weight', None)
    return weight if isinstance(weight, Tensor) else None


def is_trainable(module: nn.Module, name: str = 'weight') -> bool:
    """Whether a parameter behind the tensor is to be trained.

    Args:
        module (nn.Module): A module.
        name (str): Name of the tensor. Defaults to 'weight'.
    """
    found = sources(module, name)
    if not found:
        return getattr(module, name).requires_grad
    return any(parameter.requires_grad for parameter in found)


def without_graph(state: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a module, a computed weight cut from its graph.

    torch copies and pickles no tensor that an operation made.
    """
    weight = state.get('weight')
    if isinstance(weight, Tensor) and weight.grad_fn is not None:
        return {**state, 'weight': weight.detach().clone()}
    return dict(state)


def copy_module(model: nn.Module) -> nn.Module:
    """A deep copy, also where a module holds what an operation made.

    So it is with the weight under ``weight_norm``, which
    ``copy.deepcopy`` refuses.

    Args:
        model (nn.Module): A model, left as it is.

    Returns:
        nn.Module: The copy; such tensors are copied without their graph.
    """
    memo = {
        id(value): value.detach().clone()
        for module in model.modules() for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    return copy.deepcopy(model, memo)


def reparametrized(like: type[nn.Module],
                   base: type[nn.Module]) -> type[nn.Module]:
    """A class that computes the same tensors as another, on another base.

    Args:
        like (type): What ``parametrize`` made for one layer.
        base (type): What the class is to extend.

    Returns:
        type: A new class; as torch's, it is that of one layer only.
    """
    own = {
        key: value for key, value in vars(like).items()
        if isinstance(value, property)
        or key in ('__getstate__', '__deepcopy__')
    }
    return type(f'Parametrized{base.__name__}', (base, ),
                {**own, '__module__': __name__, '__doc__': base.__doc__})


def parametrized_base(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The class that ``parametrize`` extended, None if it is not its work."""
    made = '__getstate__' in vars(kind) and kind.__name__.startswith(
        'Parametrized')
    return kind.__bases__[0] if made else None


def same_tensors(kind: type[nn.Module], other: type[nn.Module]) -> bool:
    """Whether two classes compute tensors of the same names."""
    return _computed(kind) == _computed(other)


def _computed(kind: type[nn.Module]) -> set[str]:
    return {k for k, v in vars(kind).items() if isinstance(v, property)}
