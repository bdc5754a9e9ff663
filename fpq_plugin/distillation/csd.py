"""CSD: channel-wise standardization distillation, equations (15) to (17)."""

from __future__ import annotations

from mmengine.dist import get_world_size
from mmengine.registry import MODELS
from torch import Tensor

from ..options import is_number
from .base import DistillationLoss, refuse_other_shapes
from .csd_function import csd


@MODELS.register_module()
class CSDLoss(DistillationLoss):
    """Distance of student and teacher maps up to a per-channel affine map.

    Each map is standardized per channel, ``(z - mean) / sqrt(var + eps)``
    with the biased variance (15), (16), and the squared differences are
    summed (17) and scaled.

    Args:
        loss_weight (float): Lambda of equation (22). Defaults to 1.0.
        reduction (str): Scale of the squared norm: ``'mean'`` over all
            elements of the map; ``'channel_sum'``: mean over batch and space,
            sum over channels; ``'sum'``: literally (17). Defaults to 'mean'.
        statistics (str): Axes of mean and variance: ``'batch'``, batch and
            space; ``'space'``, space of each sample (batch again for maps
            without a space axis). Defaults to 'batch'.
        eps (float): Added to the variance. Defaults to 1e-5.
        sync (bool): Whether batch statistics are those of all processes'
            joint batch, at the price of one collective a layer. Defaults to
            False: each process's own, as in batch norm.

    Raises:
        ValueError: If an option has another value than these.

    Examples:
        >>> import torch
        >>> from fpq_plugin import CSDLoss
        >>> teacher = torch.randn(8, 3, 4, 4)
        >>> affine = 2 * teacher + torch.tensor([1., 2., 3.]).view(3, 1, 1)
        >>> CSDLoss()(affine, teacher).item() < 1e-6
        True
    """

    label = 'csd'
    takes_empty = True

    def __init__(self,
                 loss_weight: float = 1.0,
                 reduction: str = 'mean',
                 statistics: str = 'batch',
                 eps: float = 1e-5,
                 sync: bool = False) -> None:
        super().__init__()
        if reduction not in ('mean', 'channel_sum', 'sum'):
            raise ValueError("reduction must be 'mean', 'channel_sum' or "
                             f"'sum', got {reduction!r}")
        if statistics not in ('batch', 'space'):
            raise ValueError("statistics must be 'batch' or 'space', got "
                             f'{statistics!r}')
        if not is_number(loss_weight, 0):
            raise ValueError('loss_weight must be a number >= 0, got '
                             f'{loss_weight!r}')
        if not is_number(eps, 0) or eps == 0:
            raise ValueError(f'eps must be a number > 0, got {eps!r}')
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.statistics = statistics
        self.eps = eps
        self.sync = sync

    def forward(self,
                student: Tensor,
                teacher: Tensor,
                channel_axis: int = 1) -> Tensor:
        """Loss of one layer.

        Args:
            student (Tensor): The student's output z_s, with the batch on
                axis 0.
            teacher (Tensor): The teacher's output z_t of the same shape; it
                gets no gradient.
            channel_axis (int): 1 for convolutions, -1 for linear layers.
                Defaults to 1.

        Returns:
            Tensor: Scalar, ``loss_weight`` included.

        Raises:
            ValueError: If the shapes differ.
        """
        return self.attach(student, teacher, channel_axis)[1]

    def attach(self,
               student: Tensor,
               teacher: Tensor,
               channel_axis: int = 1) -> tuple[Tensor, Tensor]:
        """The student's output, for the model to go on with, and the loss.

        A model that goes on with the first has its own gradient and the
        loss's joined in one pass. Takes what :meth:`forward` takes.

        Returns:
            tuple[Tensor, Tensor]: ``student``'s values, sharing its memory,
            and the scalar that :meth:`forward` returns.

        Raises:
            ValueError: If the shapes differ.
        """
        refuse_other_shapes(student, teacher)
        channel_axis %= student.dim()
        dims = tuple(d for d in range(student.dim()) if d != channel_axis)
        if self.statistics == 'space' and len(dims) > 1:
            dims = dims[1:]
        factor = self.loss_weight
        if self.reduction == 'mean':
            factor /= max(student.numel(), 1)
        elif self.reduction == 'channel_sum':
            factor *= student.shape[channel_axis] / max(student.numel(), 1)
        joint = self.sync and get_world_size() > 1
        return csd(student, teacher.detach(), dims, self.eps, joint, factor)

    def extra_repr(self) -> str:
        return (f'loss_weight={self.loss_weight}, '
                f'reduction={self.reduction!r}, '
                f'statistics={self.statistics!r}, eps={self.eps}, '
                f'sync={self.sync}')
