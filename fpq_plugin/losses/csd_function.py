"""CSD from five moments a channel, with a closed-form backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function


def _moments(student: Tensor, teacher: Tensor, dims: tuple[int, ...]):
    var_s, mean_s = torch.var_mean(student, dims, correction=0, keepdim=True)
    var_t, mean_t = torch.var_mean(teacher, dims, correction=0, keepdim=True)
    # Centred first: E[st] - E[s]E[t] cancels where the mean is large.
    cov = ((student - mean_s) * (teacher - mean_t)).mean(dims, keepdim=True)
    return mean_s, var_s, mean_t, var_t, cov


def _gradient(student: Tensor, teacher: Tensor, moments: tuple[Tensor, ...],
              eps: float) -> Tensor:
    """Gradient of the summed squared difference with respect to student."""
    mean_s, var_s, mean_t, var_t, cov = moments
    a, b = (var_s + eps).rsqrt(), (var_t + eps).rsqrt()
    own = 2 * a.square() * (eps * a.square() + cov * a * b)
    cross = -2 * a * b
    return own * (student - mean_s) + cross * (teacher - mean_t)


class CSDFunction(Function):
    """Sum of squared differences of standardized maps, equations (15)-(17).

    With n elements a channel, biased moments and e = eps, a channel's sum is
    ``n [vt/(vt+e) + vs/(vs+e) - 2 cov / sqrt((vt+e)(vs+e))]`` (spec 4).
    Gradients go to the student's map alone; differentiable twice.
    """

    @staticmethod
    def forward(ctx, student, teacher, dims, eps):
        wide = _wide(student)
        moments = _moments(student.to(wide), teacher.to(wide), dims)
        _, var_s, _, var_t, cov = moments
        ctx.save_for_backward(student, teacher, *moments)
        ctx.settings = (dims, eps)
        elements = student.numel() // cov.numel()
        per_channel = (
            var_t / (var_t + eps) + var_s / (var_s + eps) - 2 * cov /
            ((var_t + eps) * (var_s + eps)).sqrt())
        return per_channel.sum() * elements

    @staticmethod
    def backward(ctx, grad):
        student, teacher, *moments = ctx.saved_tensors
        dims, eps = ctx.settings
        z_s, z_t = (z.to(_wide(student)) for z in (student, teacher))
        if torch.is_grad_enabled():  # a second derivative will be asked for
            moments = _moments(z_s, z_t, dims)
        out = _gradient(z_s, z_t, moments, eps) * grad
        return out.to(student.dtype), None, None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def csd(student: Tensor, teacher: Tensor, dims: tuple[int, ...],
        eps: float) -> Tensor:
    """``sum (T - S)^2`` of the maps standardized over ``dims``.

    Computes in float32 (float64 for float64 maps), also under autocast.

    Args:
        student (Tensor): The student's map z_s, any shape.
        teacher (Tensor): The teacher's map z_t, same shape; no gradient.
        dims (tuple[int]): Axes that share mean and variance.
        eps (float): Added to each variance.

    Returns:
        Tensor: Scalar.
    """
    return CSDFunction.apply(student, teacher, dims, eps)
