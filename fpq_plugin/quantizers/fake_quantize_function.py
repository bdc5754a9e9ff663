"""Uniform fake quantization with a learned step, twice differentiable.

Spec equation (3), ``x_hat = (clip(round(x / s) + z, qmin, qmax) - z) * s``,
under the straight-through surrogate: ``round(v)`` counts as ``v`` plus a
constant, ``clip`` passes the gradient where its argument is inside
``[qmin, qmax]``. Then::

    d x_hat / d x = 1                    inside,  0            outside
    d x_hat / d s = round(x / s) - x / s inside,  clip(..) - z outside

Given the rounding residual and the mask, ``x_hat`` is linear in ``x`` and
``s``: the surrogate's second derivatives are zero, and the backward is a
linear map of the incoming gradient, whose own derivative is its adjoint.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

STEP_FLOOR = torch.finfo(torch.float32).eps


def positive_step(scale: Tensor) -> Tensor:
    """The step ``max(|scale|, 1.2e-7)`` that a raw scale parameter stands for.

    Args:
        scale (Tensor): Raw scale, any shape, any sign.

    Returns:
        Tensor: Positive step of the same shape, in units of the input.
    """
    return scale.abs().clamp_min(STEP_FLOOR)


def _along_channels(value: Tensor, x: Tensor, ch_axis: int | None) -> Tensor:
    if ch_axis is None:
        return value
    shape = [1] * x.dim()
    shape[ch_axis] = -1
    return value.view(shape)


def _quantize(x: Tensor, step: Tensor, zero_point: Tensor, quant_min: int,
              quant_max: int) -> Tensor:
    x_int = torch.round(x / step).add_(zero_point).clamp_(quant_min, quant_max)
    return x_int.sub_(zero_point).mul_(step)


def _surrogate_slopes(x: Tensor, step: Tensor, zero_point: Tensor,
                      quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """``d x_hat / d x`` and ``d x_hat / d s``, elementwise."""
    v = x / step
    unclipped = torch.round(v).add_(zero_point)
    clipped = unclipped.clamp(quant_min, quant_max)
    inside = unclipped == clipped
    steps = clipped.sub_(zero_point)
    step_slope = torch.where(inside, steps - v, steps)
    return inside, step_slope


class _FakeQuantizeBackward(Function):
    """The backward of :class:`FakeQuantizeFunction`, linear in ``grad``."""

    @staticmethod
    def forward(ctx, grad, x, scale, zero_point, quant_min, quant_max, ch_axis,
                grad_factor):
        ctx.save_for_backward(x, scale, zero_point)
        ctx.settings = (quant_min, quant_max, ch_axis, grad_factor)
        inside, step_slope = _slopes(x, scale, zero_point, quant_min,
                                     quant_max, ch_axis)
        grad_x = grad * inside
        per_element = step_slope.mul_(grad)
        if ch_axis is None:
            grad_step = per_element.sum().reshape(scale.shape)
        else:
            grad_step = per_element.movedim(ch_axis, 0).reshape(
                scale.numel(), -1).sum(1)
        sign = torch.where(scale < 0, -grad_factor, grad_factor)
        return grad_x, (grad_step * sign).to(scale.dtype)

    @staticmethod
    def backward(ctx, grad_grad_x, grad_grad_scale):
        x, scale, zero_point = ctx.saved_tensors
        quant_min, quant_max, ch_axis, grad_factor = ctx.settings
        with torch.no_grad():
            inside, step_slope = _slopes(x, scale, zero_point, quant_min,
                                         quant_max, ch_axis)
            sign = torch.where(scale < 0, -grad_factor, grad_factor)
        out = 0
        if grad_grad_x is not None:
            out = grad_grad_x * inside
        if grad_grad_scale is not None:
            along = _along_channels(grad_grad_scale * sign, x, ch_axis)
            out = out + along * step_slope
        return (out.to(x.dtype), ) + (None, ) * 7


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _slopes(x, scale, zero_point, quant_min, quant_max, ch_axis):
    dtype = _compute_dtype(x)
    return _surrogate_slopes(
        x.to(dtype),
        _along_channels(positive_step(scale).to(dtype), x, ch_axis),
        _along_channels(zero_point.to(dtype), x, ch_axis), quant_min,
        quant_max)


class FakeQuantizeFunction(Function):
    """Autograd node of spec equation (3); use :func:`fake_quantize`."""

    @staticmethod
    def forward(ctx, x, scale, zero_point, quant_min, quant_max, ch_axis,
                grad_factor):
        ctx.save_for_backward(x, scale, zero_point)
        ctx.settings = (quant_min, quant_max, ch_axis, grad_factor)
        dtype = _compute_dtype(x)
        out = _quantize(
            x.to(dtype),
            _along_channels(positive_step(scale).to(dtype), x, ch_axis),
            _along_channels(zero_point.to(dtype), x, ch_axis), quant_min,
            quant_max)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        grad_x, grad_scale = _FakeQuantizeBackward.apply(
            grad, *ctx.saved_tensors, *ctx.settings)
        return grad_x.to(grad.dtype), grad_scale, None, None, None, None, None


def fake_quantize(x: Tensor,
                  scale: Tensor,
                  zero_point: Tensor,
                  quant_min: int,
                  quant_max: int,
                  ch_axis: int | None = None,
                  grad_factor: float = 1.0) -> Tensor:
    """Quantize and dequantize ``x``, spec equation (3), with LSQ's gradients.

    Computes in float32 (float64 for float64 input), also under autocast, and
    returns ``x``'s dtype.

    Args:
        x (Tensor): Input of any shape.
        scale (Tensor): Raw scale, shape (1,) or, with ``ch_axis``, (C,). The
            step used is :func:`positive_step` of it, in units of ``x``.
        zero_point (Tensor): Integer zero point of ``scale``'s shape.
        quant_min (int): Lowest integer value.
        quant_max (int): Highest integer value.
        ch_axis (int, optional): Channel axis of ``x``. Defaults to None, one
            step for the tensor.
        grad_factor (float): Factor on the scale's gradient, LSQ's
            ``1 / sqrt(n Qp)``. Defaults to 1.0.

    Returns:
        Tensor: ``x_hat`` of ``x``'s shape and dtype.
    """
    return FakeQuantizeFunction.apply(x, scale, zero_point, quant_min,
                                      quant_max, ch_axis, grad_factor)
