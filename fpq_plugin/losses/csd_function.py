"""CSD from five moments a channel, with a closed-form backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from ..compiled import compiled
from .joint_moments import joint_moments


def _moments(student: Tensor, teacher: Tensor, over_batch: bool):
    """Means, biased variances and covariance of maps of shape (N, C, L).

    The moments are taken around the mean of the first sample: E[st] -
    E[s]E[t] would cancel where the mean is large. Each row of L elements is
    summed while it is in cache, the N rows' means are averaged after.

    Returns:
        tuple: (mean_s, var_s, mean_t, var_t, cov), each of shape (1, C, 1),
        or (N, C, 1) if not ``over_batch``.
    """

    def mean(z: Tensor) -> Tensor:
        z = z.mean(2, keepdim=True)
        return z.mean(0, keepdim=True) if over_batch else z

    def centre(z: Tensor) -> Tensor:
        return (z[:1] if over_batch else z).mean(2, keepdim=True)

    centre_s, centre_t = centre(student), centre(teacher)
    s, t = student - centre_s, teacher - centre_t
    mean_s, mean_t = mean(s), mean(t)
    var_s = mean(s * s) - mean_s * mean_s
    var_t = mean(t * t) - mean_t * mean_t
    cov = mean(s * t) - mean_s * mean_t
    return centre_s + mean_s, var_s, centre_t + mean_t, var_t, cov


@compiled
def _loss(student: Tensor, teacher: Tensor, over_batch: bool,
          eps: float) -> tuple[Tensor, ...]:
    """The loss of maps of shape (N, C, L) and what its gradient needs.

    Returns:
        tuple: The loss, a scalar, and (own, mean_s, cross, mean_t) of the
        gradient ``own (z_s - mean_s) + cross (z_t - mean_t)``, of the
        moments' shape.
    """
    wide = _wide(student)
    moments = _moments(student.to(wide), teacher.to(wide), over_batch)
    return _from_moments(moments, student.numel(), eps)


def _joint_loss(student: Tensor, teacher: Tensor,
                eps: float) -> tuple[Tensor, ...]:
    """:func:`_loss` with the statistics of all processes' joint batch."""
    wide = _wide(student)
    moments = _moments(student.to(wide), teacher.to(wide), True)
    elements = student.numel()
    joint = joint_moments(moments, elements // moments[0].numel())
    return _from_moments(joint, elements, eps)


def _from_moments(moments: tuple[Tensor, ...], elements: int,
                  eps: float) -> tuple[Tensor, ...]:
    mean_s, var_s, mean_t, var_t, cov = moments
    a, b = (var_s + eps).rsqrt(), (var_t + eps).rsqrt()
    own = 2 * a * a * (eps * a * a + cov * a * b)
    cross = -2 * a * b
    per_channel = (
        var_t / (var_t + eps) + var_s / (var_s + eps) - 2 * cov /
        ((var_t + eps) * (var_s + eps)).sqrt())
    loss = per_channel.sum() * (elements // cov.numel())
    return loss, own, mean_s, cross, mean_t


@compiled
def _gradient(student: Tensor, teacher: Tensor, own: Tensor, mean_s: Tensor,
              cross: Tensor, mean_t: Tensor, grad: Tensor) -> Tensor:
    """Gradient for the student's map, times ``grad``, a scalar."""
    wide = _wide(student)
    out = (grad * own) * (student.to(wide) - mean_s)
    out = out + (grad * cross) * (teacher.to(wide) - mean_t)
    return out.to(student.dtype)


class CSDFunction(Function):
    """Sum of squared differences of standardized maps, equations (15)-(17).

    With n elements a channel, biased moments and e = eps, a channel's sum is
    ``n [vt/(vt+e) + vs/(vs+e) - 2 cov / sqrt((vt+e)(vs+e))]`` (spec 4).
    Gradients go to the student's map alone; differentiable twice.
    """

    @staticmethod
    def forward(ctx, student, teacher, dims, eps, joint):
        over_batch = 0 in dims
        channel = max(set(range(student.dim())) - set(dims))
        maps = _as_maps(student, channel), _as_maps(teacher, channel)
        if joint and over_batch:
            loss, *coefficients = _joint_loss(*maps, eps)
        else:
            run = _loss if _loss.pays(student) else _loss.plain
            loss, *coefficients = run(*maps, over_batch, eps)
        ctx.save_for_backward(student, teacher, *coefficients)
        ctx.settings = (channel, over_batch, eps, joint)
        return loss

    @staticmethod
    def backward(ctx, grad):
        student, teacher, *coefficients = ctx.saved_tensors
        channel, over_batch, eps, joint = ctx.settings
        maps = _as_maps(student, channel), _as_maps(teacher, channel)
        if torch.is_grad_enabled():  # a second derivative will be asked for
            if joint and over_batch:
                raise RuntimeError(
                    'CSDLoss(sync=True) can be differentiated once only')
            _, *coefficients = _loss.plain(*maps, over_batch, eps)
            run = _gradient.plain
        else:
            run = _gradient if _gradient.pays(student) else _gradient.plain
        out = run(*maps, *coefficients, grad)
        return _from_maps(out, student.shape, channel), *(None, ) * 4


def _as_maps(z: Tensor, channel: int) -> Tensor:
    """``z`` as (N, C, L); a tensor of two axes is one sample, N = 1."""
    if z.dim() == 2:
        return z.movedim(channel, 0)[None]
    return z.movedim(channel, 1).flatten(2)


def _from_maps(maps: Tensor, shape: torch.Size, channel: int) -> Tensor:
    """The inverse of :func:`_as_maps`."""
    places = (*shape[:channel], *shape[channel + 1:])
    return maps.movedim(1, -1).reshape(*places, -1).movedim(-1, channel)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def csd(student: Tensor,
        teacher: Tensor,
        dims: tuple[int, ...],
        eps: float,
        joint: bool = False) -> Tensor:
    """``sum (T - S)^2`` of the maps standardized over ``dims``.

    Computes in float32 (float64 for float64 maps), also under autocast.

    Args:
        student (Tensor): The student's map z_s of two or more axes.
        teacher (Tensor): The teacher's map z_t, same shape; no gradient.
        dims (tuple[int]): Axes that share mean and variance: all but the
            channels', or all but those and the first.
        eps (float): Added to each variance.
        joint (bool): Whether to standardize over all processes' joint batch;
            the sum stays this process's share. Defaults to False.

    Returns:
        Tensor: Scalar.
    """
    return CSDFunction.apply(student, teacher, dims, eps, joint)
