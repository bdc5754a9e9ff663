"""SFP as one operator, for graphs that torch.compile traces.

Whether and what noise a call draws is decided anew each time; traced as
Python it would break the graph, or be frozen into it.
"""

from __future__ import annotations

from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from .compat import HAS_CUSTOM_OPS

_layers: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_numbers = count()


def enlist(perturbation: nn.Module) -> int:
    """The number under which the operator finds this module."""
    number = next(_numbers)
    _layers[number] = perturbation
    return number


def _perturb(x: Tensor, step: Tensor, number: int) -> Tensor:
    out = _layers[number].perturb_now(x, step)
    return x.clone() if out is x else out


if HAS_CUSTOM_OPS:
    perturb = torch.library.custom_op(
        'fpq::perturb', _perturb, mutates_args=(),
        schema='(Tensor x, Tensor step, int number) -> Tensor')
    perturb.register_fake(lambda x, step, number: torch.empty_like(x))
    perturb.register_autograd(lambda ctx, grad: (grad, None, None))
