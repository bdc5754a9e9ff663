"""Independent float64 references, written from the formulas of the spec."""

from __future__ import annotations

import torch
from torch import Tensor


def fake_quantize_64(x: Tensor, step: Tensor, zero_point: Tensor,
                     quant_min: int, quant_max: int) -> Tensor:
    """Equation (3) under the straight-through surrogate, by autograd.

    ``step`` and ``zero_point`` broadcast to ``x``.
    """
    v = x / step
    rounded = torch.round(v.detach())
    unclipped = rounded + zero_point
    inside = (unclipped >= quant_min) & (unclipped <= quant_max)
    moving = v + (rounded - v.detach())
    stuck = unclipped.clamp(quant_min, quant_max) - zero_point
    return torch.where(inside, moving, stuck) * step


def frozen_surrogate(x: Tensor, step: Tensor, zero_point: Tensor,
                     quant_min: int, quant_max: int):
    """The surrogate around (x, step) as a smooth function, for differences.

    Rounding residual and clipping are those at the given point.
    """
    v = x / step
    residual = torch.round(v) - v
    unclipped = torch.round(v) + zero_point
    clipped = unclipped.clamp(quant_min, quant_max)
    inside = unclipped == clipped

    def function(x: Tensor, step: Tensor) -> Tensor:
        moving = (x / step + residual) * step
        stuck = (clipped - zero_point) * step
        return torch.where(inside, moving, stuck)

    return function


def csd_64(student: Tensor, teacher: Tensor, axes: tuple[int, ...],
           eps: float) -> Tensor:
    """Equations (15) to (17), literally: standardize, subtract, square."""

    def standardize(z: Tensor) -> Tensor:
        mean = z.mean(axes, keepdim=True)
        var = (z - mean).square().mean(axes, keepdim=True)
        return (z - mean) / torch.sqrt(var + eps)

    return (standardize(teacher) - standardize(student)).square().sum()
