"""CSD from five moments a channel, with a closed-form backward."""

from __future__ import annotations

import torch
from mmengine.dist import all_gather
from torch import Tensor
from torch.autograd import Function

from .._compat.kernels import compiled, constant
from .._compat.tracing import is_transforming
from .._compat.versions import is_compiling


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

    def variance(z: Tensor, mean_z: Tensor) -> Tensor:
        square = mean_z * mean_z
        var = mean(z * z) - square
        # At least square / (N - 1); less is rounding, of constant channels.
        return var.masked_fill(2 * z.shape[0] * var < square, 0)

    centre_s, centre_t = centre(student), centre(teacher)
    s, t = student - centre_s, teacher - centre_t
    mean_s, mean_t = mean(s), mean(t)
    var_s, var_t = variance(s, mean_s), variance(t, mean_t)
    cov = mean(s * t) - mean_s * mean_t
    cov = cov.masked_fill((var_s == 0) | (var_t == 0), 0)
    return centre_s + mean_s, var_s, centre_t + mean_t, var_t, cov


@compiled
def _loss(student: Tensor, teacher: Tensor, over_batch: bool, eps: float,
          factor: float | Tensor) -> tuple[Tensor, ...]:
    """The loss of maps of shape (N, C, L) and what its gradient needs.

    Returns:
        tuple: The loss, a scalar, and (own, mean_s, cross, mean_t) of the
        gradient ``own (z_s - mean_s) + cross (z_t - mean_t)``, of the
        moments' shape.
    """
    wide = _wide(student)
    moments = _moments(student.to(wide), teacher.to(wide), over_batch)
    return _from_moments(moments, student.numel(), eps, factor)


def _joint_loss(student: Tensor, teacher: Tensor, eps: float,
                factor: float) -> tuple[Tensor, ...]:
    """:func:`_loss` with the statistics of all processes' joint batch."""
    wide = _wide(student)
    elements, channels = student.numel(), student.shape[1]
    if elements:
        moments = _moments(student.to(wide), teacher.to(wide), True)
    else:  # the other processes wait for this one's
        moments = (student.new_zeros(1, channels, 1, dtype=wide), ) * 5
    joint = joint_moments(moments, elements // max(channels, 1))
    return _from_moments(joint, elements, eps, factor)


def _from_moments(moments: tuple[Tensor, ...], elements: int, eps: float,
                  factor: float | Tensor) -> tuple[Tensor, ...]:
    mean_s, var_s, mean_t, var_t, cov = moments
    a, b = (var_s + eps).rsqrt(), (var_t + eps).rsqrt()
    own = 2 * a * a * (eps * a * a + cov * a * b)
    cross = -2 * a * b
    per_channel = (
        var_t / (var_t + eps) + var_s / (var_s + eps) - 2 * cov /
        ((var_t + eps) * (var_s + eps)).sqrt())
    loss = per_channel.sum() * (elements // max(cov.numel(), 1))
    return loss * factor, own, mean_s, cross, mean_t


@compiled
def _gradient(student: Tensor, teacher: Tensor, own: Tensor, mean_s: Tensor,
              cross: Tensor, mean_t: Tensor, grad: Tensor,
              factor: float | Tensor, upstream: Tensor | None) -> Tensor:
    """Gradient for the student's map, times the scalars grad and factor.

    ``upstream``, the gradient from the rest of the model, is added in the
    same pass over memory.
    """
    wide = _wide(student)
    grad = grad * factor
    out = (grad * own) * (student.to(wide) - mean_s)
    out = out + (grad * cross) * (teacher.to(wide) - mean_t)
    if upstream is not None:
        out = out + upstream.to(wide)
    return out.to(student.dtype)


class CSDFunction(Function):
    """Sum of squared differences of standardized maps, equations (15)-(17).

    With n elements a channel, biased moments and e = eps, a channel's sum is
    ``n [vt/(vt+e) + vs/(vs+e) - 2 cov / sqrt((vt+e)(vs+e))]``.
    Gradients go to the student's map alone; differentiable twice.

    The student's map passes through, so that its two gradients, the loss's
    and the rest of the model's, are one pass over memory. The maps are kept
    on the node and not by ``save_for_backward``: activation checkpointing
    counts what that saves, and does not distil when it runs a region again.
    """

    @staticmethod
    def forward(ctx, student, teacher, dims, eps, joint, factor):
        ctx.set_materialize_grads(False)
        over_batch = 0 in dims
        channel = max(set(range(student.dim())) - set(dims))
        maps = _as_maps(student, channel), _as_maps(teacher, channel)
        joint = joint and over_batch
        if joint:
            loss, *ctx.coefficients = _joint_loss(*maps, eps, factor)
        elif _loss.pays(student):
            loss, *ctx.coefficients = _loss(*maps, over_batch, eps,
                                            constant(factor, student.device))
        else:
            loss, *ctx.coefficients = _loss.plain(*maps, over_batch, eps,
                                                  factor)
        ctx.maps = student, teacher
        ctx.versions = student._version, teacher._version
        ctx.settings = (channel, over_batch, eps, joint, factor)
        # Detached: autograd lets what follows change it in place.
        return student.detach(), loss

    @staticmethod
    def backward(ctx, upstream, grad):
        if grad is None:
            return upstream, *(None, ) * 5
        student, teacher = _maps_of(ctx)
        channel, over_batch, eps, joint, factor = ctx.settings
        maps = [_as_maps(student, channel), _as_maps(teacher, channel)]
        coefficients = ctx.coefficients
        run = _gradient.plain
        if torch.is_grad_enabled():  # a second derivative will be asked for
            if joint:
                raise RuntimeError(
                    'CSDLoss(sync=True) can be differentiated once only')
            _, *coefficients = _loss.plain(*maps, over_batch, eps, factor)
        elif _gradient.pays(student):
            run, factor = _gradient, constant(factor, student.device)
        if upstream is not None:
            upstream = _as_maps(upstream, channel)
        out = run(*maps, *coefficients, grad, factor, upstream)
        return _from_maps(out, student.shape, channel), *(None, ) * 5


def _maps_of(ctx) -> tuple[Tensor, Tensor]:
    """The node's maps, let go unless the graph is to be used again.

    Raises:
        RuntimeError: If they are gone, or were changed in place.
    """
    if ctx.maps is None:
        raise RuntimeError('the graph of this loss was used and freed: call '
                           'backward(retain_graph=True) the first time')
    if ctx.versions != tuple(z._version for z in ctx.maps):
        raise RuntimeError('a map that CSD compared was changed in place '
                           'before the backward: clone it')
    maps = ctx.maps
    if not _keeps_graph():
        ctx.maps = None
    return maps


# torch 2.1 cannot tell; the maps then stay as long as the graph.
_keeps_graph = getattr(torch._C._autograd,
                       '_get_current_graph_task_keep_graph', lambda: True)


def _as_maps(z: Tensor, channel: int) -> Tensor:
    """``z`` as (N, C, L), dense; a tensor of two axes is one sample, N = 1."""
    if z.dim() == 2:
        maps = z.movedim(channel, 0)[None]
    else:
        maps = z.movedim(channel, 1).flatten(2)
    if maps.is_contiguous() or maps.mT.is_contiguous():
        return maps
    return maps.contiguous()


def _from_maps(maps: Tensor, shape: torch.Size, channel: int) -> Tensor:
    """The inverse of :func:`_as_maps`."""
    places = (*shape[:channel], *shape[channel + 1:])
    channels = maps.movedim(1, -1).reshape(*places, shape[channel])
    return channels.movedim(-1, channel)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def csd(student: Tensor,
        teacher: Tensor,
        dims: tuple[int, ...],
        eps: float,
        joint: bool = False,
        factor: float = 1.0) -> tuple[Tensor, Tensor]:
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
        factor (float): Factor on the sum. Defaults to 1.0.

    Returns:
        tuple[Tensor, Tensor]: The student's map, for the model to go on
        with, and the loss, a scalar. A model that goes on with ``student``
        itself gets the same gradients, in one more pass over memory.
    """
    if student.numel() == 0 and not joint:
        return student, student.sum(dtype=_wide(student))
    if (is_compiling() or is_transforming()) and not joint:
        channel = max(set(range(student.dim())) - set(dims))
        loss, *_ = _loss.plain(
            _as_maps(student, channel), _as_maps(teacher, channel), 0 in dims,
            eps, factor)
        return student, loss
    return CSDFunction.apply(student, teacher, dims, eps, joint, factor)


def joint_moments(moments: tuple[Tensor, ...],
                  elements: int) -> tuple[Tensor, ...]:
    """Combine each process's moments into those of the joint batch.

    One collective of 5 C + 1 floats: with weights w = n_r / n, ``mean = sum w
    mean_r`` and ``cov = sum w (cov_r + (mean_s,r - mean_s)(mean_t,r -
    mean_t))`` (Chan et al., 1979), alike for the variances.

    Args:
        moments (tuple[Tensor]): (mean_s, var_s, mean_t, var_t, cov) of this
            process, each of shape (1, C, 1).
        elements (int): Elements a channel in this process.

    Returns:
        tuple[Tensor]: The same five over all processes.
    """
    own = torch.cat([m.flatten() for m in moments])
    packed = torch.cat([own, own.new_tensor([elements])])
    every = torch.stack(all_gather(packed))
    weight = every[:, -1] / every[:, -1].sum().clamp_min(1)
    mean_s, var_s, mean_t, var_t, cov = every[:, :-1].unflatten(
        1, (5, -1)).unbind(1)

    def average(values: Tensor) -> Tensor:
        return (weight[:, None] * values).sum(0)

    joint_s, joint_t = average(mean_s), average(mean_t)
    out = (joint_s, average(var_s + (mean_s - joint_s)**2), joint_t,
           average(var_t + (mean_t - joint_t)**2),
           average(cov + (mean_s - joint_s) * (mean_t - joint_t)))
    return tuple(value.view_as(moments[0]) for value in out)
