"""A formula with rounding and clipping, made smooth around one point."""

from __future__ import annotations

import torch
from torch import Tensor


class Frozen:
    """Rounding residuals and masks as they were at the first evaluation.

    Written with :meth:`round` and :meth:`where`, a formula is the straight-
    through surrogate to autograd, and a smooth function to finite
    differences: from the second evaluation on (after :meth:`again`) residuals
    and masks are those of the first.
    """

    def __init__(self) -> None:
        self._past: list[Tensor] = []
        self._next = 0

    def again(self) -> Frozen:
        """Start the next evaluation."""
        self._next = 0
        return self

    def constant(self, value: Tensor) -> Tensor:
        """``value`` as it was at the first evaluation."""
        if self._next == len(self._past):
            self._past.append(value.detach())
        self._next += 1
        return self._past[self._next - 1]

    def round(self, v: Tensor) -> Tensor:
        """Nearest integers (ties to even) with the gradient of ``v``."""
        return v + self.constant(torch.round(v.detach()) - v.detach())

    def where(self, mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        """``torch.where`` with the first evaluation's mask."""
        return torch.where(self.constant(mask), yes, no)
