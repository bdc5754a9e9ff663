"""Uniform fake quantization with a learned step, twice differentiable.

Equation (3) of the paper (arXiv 2503.11159),
``x_hat = (clip(round(x / s) + z, qmin, qmax) - z) * s``, under the
straight-through surrogate: ``round(v)`` counts as ``v`` plus a constant,
``clip`` passes the gradient where its argument is inside
``[qmin, qmax]``. Then::

    d x_hat / d x = 1                    inside,  0            outside
    d x_hat / d s = round(x / s) - x / s inside,  clip(..) - z outside

Given the rounding residual and the mask, ``x_hat`` is linear in ``x`` and
``s``: the surrogate's second derivatives are zero, and the backward is a
linear map of the incoming gradient, whose own derivative is its adjoint.

In code the zero point moves into the bounds, ``clip(round(x / s), qmin - z,
qmax - z) * s``, which is the same number.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._compat.kernels import CompiledFunction, compiled, constant
from .._compat.tracing import is_exporting, is_transforming
from .grid import along_channels

_MOST_ROWS = 2**10

STEP_FLOOR = torch.finfo(torch.float32).eps


def positive_step(scale: Tensor) -> Tensor:
    """The step ``max(|scale|, 1.2e-7)`` that a raw scale parameter stands for.

    Args:
        scale (Tensor): Raw scale, any shape, any sign.

    Returns:
        Tensor: Positive step of the same shape, in units of the input.
    """
    return scale.abs().clamp_min(STEP_FLOOR)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@compiled
def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor,
              quant_min: int | Tensor, quant_max: int | Tensor) -> Tensor:
    """Equation (3); ``scale`` and ``zero_point`` broadcast to ``x``."""
    dtype = _compute_dtype(x)
    step = positive_step(scale).to(dtype)
    low, high = _bounds(zero_point, quant_min, quant_max, dtype)
    out = torch.round(x.to(dtype) / step).clamp(low, high) * step
    # No second name for one tensor: torch.compile of torch 2.11 then loses
    # the gradient (pytorch/pytorch#180642).
    return out if out.dtype == x.dtype else out.to(x.dtype)


def _bounds(zero_point: Tensor, quant_min: int | Tensor,
            quant_max: int | Tensor,
            dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    low = quant_min - zero_point.to(dtype)
    return low, low + (quant_max - quant_min)


def _slopes(x: Tensor, scale: Tensor, zero_point: Tensor,
            quant_min: int | Tensor,
            quant_max: int | Tensor) -> tuple[Tensor, Tensor]:
    """``d x_hat / d x`` and ``d x_hat / d s``, elementwise."""
    dtype = _compute_dtype(x)
    v = x.to(dtype) / positive_step(scale).to(dtype)
    rounded = torch.round(v)
    clipped = rounded.clamp(
        *_bounds(zero_point, quant_min, quant_max, dtype))
    inside = rounded == clipped
    return inside, torch.where(inside, clipped - v, clipped)


def _sign(scale: Tensor) -> Tensor:
    """``d s / d scale``: -1 below zero, else 1."""
    return 1 - 2 * (scale < 0).to(scale.dtype)


@compiled
def _gradients(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor,
               quant_min: int | Tensor, quant_max: int | Tensor,
               grad_factor: float | Tensor) -> tuple[Tensor, Tensor]:
    """Gradients for ``x`` and ``scale`` from the one for ``x_hat``."""
    inside, step_slope = _slopes(x, scale, zero_point, quant_min, quant_max)
    grad_step = step_slope.mul_(grad).sum_to_size(scale.shape)
    grad_scale = grad_step.to(scale.dtype) * _sign(scale) * grad_factor
    return grad * inside, grad_scale.to(scale.dtype)


def _memory_format(x: Tensor) -> torch.memory_format | None:
    """The dense format of ``x``, None for any other layout."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return None


def _run(kernel: CompiledFunction, maps: tuple[Tensor, ...], scale: Tensor,
         zero_point: Tensor, ch_axis: int | None, *numbers: float,
         trains: bool = True) -> Any:
    """Run ``kernel`` on maps of one shape, the last of which is ``x``.

    The compiled kernel sees memory in its own order, as one row or as one
    row per channel, so that one compilation serves every shape. What it
    returns for a step of the tensor has an element for each of its rows.
    """
    x = maps[-1]
    memory_format = (
        _memory_format(x) if not ch_axis and kernel.pays(x, trains) else
        None)
    if memory_format is None:
        return kernel.plain(*maps, along_channels(scale, x, ch_axis),
                            along_channels(zero_point, x, ch_axis), *numbers)
    rows = (_rows_to_sum(x, scale) if kernel is _gradients else
            scale.numel())
    row = x.numel() // rows
    flat = (z.contiguous(memory_format=memory_format).as_strided(
        (rows, row), (row, 1)) for z in maps)
    each = rows // scale.numel()
    return kernel(*flat, *(z.repeat(each).view(rows, 1) if each > 1 else
                           z.view(rows, 1) for z in (scale, zero_point)),
                  *(constant(float(n), x.device) for n in numbers))


def _rows_to_sum(x: Tensor, scale: Tensor) -> int:
    """In how many rows the compiled kernel sums along ``x``.

    One row would keep three of a GPU's processors busy: Inductor splits a sum
    for the size that it was traced with.
    """
    if scale.numel() > 1 or not _has_many_processors(x):
        return scale.numel()
    return math.gcd(x.numel(), _MOST_ROWS)


def _has_many_processors(x: Tensor) -> bool:
    return x.is_cuda


def _backward(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor,
              quant_min: int, quant_max: int, ch_axis: int | None,
              grad_factor: float) -> tuple[Tensor, Tensor]:
    grad_x, grad_scale = _run(_gradients, (grad, x), scale, zero_point,
                              ch_axis, quant_min, quant_max, grad_factor)
    if grad_x.shape != x.shape:
        grad_x.as_strided_(x.shape, x.stride())
    if grad_scale.numel() != scale.numel():
        grad_scale = grad_scale.sum()
    return grad_x, grad_scale.view(scale.shape)


class _FakeQuantizeBackward(Function):
    """The backward of :class:`FakeQuantizeFunction`, linear in ``grad``."""

    @staticmethod
    def forward(ctx, grad, x, scale, zero_point, *settings):
        ctx.save_for_backward(x, scale, zero_point)
        ctx.settings = settings
        return _backward(grad, x, scale, zero_point, *settings)

    @staticmethod
    def backward(ctx, grad_grad_x, grad_grad_scale):
        x, scale, zero_point = ctx.saved_tensors
        quant_min, quant_max, ch_axis, grad_factor = ctx.settings
        with torch.no_grad():
            inside, step_slope = _slopes(
                x, along_channels(scale, x, ch_axis),
                along_channels(zero_point, x, ch_axis), quant_min, quant_max)
        grad_grad_step = grad_grad_scale * _sign(scale) * grad_factor
        out = grad_grad_x * inside + along_channels(
            grad_grad_step, x, ch_axis) * step_slope
        return (out.to(x.dtype), ) + (None, ) * 7


class FakeQuantizeFunction(Function):
    """Autograd node of equation (3); use :func:`fake_quantize`."""

    @staticmethod
    def forward(ctx, x, scale, zero_point, quant_min, quant_max, ch_axis,
                grad_factor, trains):
        ctx.save_for_backward(x, scale, zero_point)
        ctx.settings = (quant_min, quant_max, ch_axis, grad_factor)
        out = _run(_quantize, (x, ), scale, zero_point, ch_axis, quant_min,
                   quant_max, trains=trains)
        return (out if out.shape == x.shape else out.as_strided_(
            x.shape, x.stride()))

    @staticmethod
    def backward(ctx, grad):
        # The node costs time and is needed for a second derivative alone.
        run = (
            _FakeQuantizeBackward.apply
            if torch.is_grad_enabled() else _backward)
        grad_x, grad_scale = run(grad, *ctx.saved_tensors, *ctx.settings)
        return grad_x, grad_scale, *(None, ) * 6


def _straight_through(x: Tensor, scale: Tensor, zero_point: Tensor,
                      quant_min: int, quant_max: int,
                      grad_factor: float) -> Tensor:
    """The same in torch's operators alone, which torch.func transforms.

    To the values is added ``x inside + s d x_hat / d s`` less itself: 0, with
    the gradients of the surrogate.
    """
    dtype = _compute_dtype(x)
    fixed = scale.detach()
    slopes = _slopes(x.detach(), fixed, zero_point, quant_min, quant_max)
    step = (scale - fixed) * _sign(fixed) * grad_factor
    change = (x.to(dtype) - x.detach().to(dtype)) * slopes[0] + (
        step.to(dtype) * slopes[1])
    out = _quantize.plain(x.detach(), fixed, zero_point, quant_min, quant_max)
    return out + change.to(out.dtype)


def fake_quantize(x: Tensor,
                  scale: Tensor,
                  zero_point: Tensor,
                  quant_min: int,
                  quant_max: int,
                  ch_axis: int | None = None,
                  grad_factor: float = 1.0) -> Tensor:
    """Quantize and dequantize ``x`` by equation (3), with LSQ's gradients.

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
    if is_exporting():  # a graph of torch's operators alone can be saved
        return _quantize.plain(x, along_channels(scale, x, ch_axis),
                               along_channels(zero_point, x, ch_axis),
                               quant_min, quant_max)
    if is_transforming():
        return _straight_through(x, along_channels(scale, x, ch_axis),
                                 along_channels(zero_point, x, ch_axis),
                                 quant_min, quant_max, grad_factor)
    # Inside of the function gradients are off.
    trains = torch.is_grad_enabled()
    return FakeQuantizeFunction.apply(x, scale, zero_point, quant_min,
                                      quant_max, ch_axis, grad_factor, trains)
