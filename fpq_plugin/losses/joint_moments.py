"""Moments of the joint batch of all processes."""

from __future__ import annotations

import torch
from mmengine.dist import all_gather
from torch import Tensor


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
    weight = every[:, -1] / every[:, -1].sum()
    mean_s, var_s, mean_t, var_t, cov = every[:, :-1].unflatten(
        1, (5, -1)).unbind(1)

    def average(values: Tensor) -> Tensor:
        return (weight[:, None] * values).sum(0)

    joint_s, joint_t = average(mean_s), average(mean_t)
    out = (joint_s, average(var_s + (mean_s - joint_s)**2), joint_t,
           average(var_t + (mean_t - joint_t)**2),
           average(cov + (mean_s - joint_s) * (mean_t - joint_t)))
    return tuple(value.view_as(moments[0]) for value in out)
