"""The losses: what each of them is, CSD (eqs. 15 to 17), the logits'."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..options import is_number
from .csd_function import csd


class DistillationLoss(ABC, nn.Module):
    """A loss of one layer's output in the student and in the teacher.

    A subclass registers with ``MODELS`` and gives :attr:`label` and
    :meth:`forward`; a config then names it in ``distillation``.

    Attributes:
        label (str): The log has the loss as ``loss_<label>``.
        last_layer_only (bool): Whether only the classifier's logits are
            compared: the last quantized layer that is not of an auxiliary
            head (by its name: ``aux...``), or ``layer``. Defaults to False.
        layer (str, optional): Name pattern of the one layer that is
            compared. Defaults to None.
        takes_empty (bool): Whether it has a value for outputs without
            elements; otherwise theirs is 0. Defaults to False.
        part (Tensor, optional): Scalar that the loss and its weight are
            multiplied by, which :meth:`set_progress` changes. Defaults to
            None: 1 throughout.
        over (bool): Whether it has faded out, so that it need not be taken.

    Examples:
        >>> from mmengine.registry import MODELS
        >>> from fpq_plugin.distillation import DistillationLoss
        >>> @MODELS.register_module()
        ... class MeanSquaredDistance(DistillationLoss):
        ...     label = 'mse'
        ...     def forward(self, student, teacher, channel_axis):
        ...         return (student - teacher).square().mean()
    """

    label: str
    last_layer_only = False
    layer: str | None = None
    takes_empty = False
    part: Tensor | None = None
    fades: str | None = None
    fades_by: float | int = 1.0
    over = False

    def of_one_layer(self) -> bool:
        """Whether one layer's output is compared, not every layer's."""
        return self.last_layer_only or self.layer is not None

    def fade(self, which: str | None, by: float | int = 1.0) -> None:
        """Have the loss fade over the training, along a cosine.

        Args:
            which (str, optional): 'out': from its weight to 0; 'in': from 0
                to its weight; None: neither.
            by (float | int): When it has: a float is the share of the
                training, above 0 and at most 1, an integer the number of
                iterations, or all if there are fewer. Defaults to 1.0.

        Raises:
            ValueError: If it is another value.
        """
        if which not in (None, 'in', 'out'):
            raise ValueError(f"fades must be 'in', 'out' or None, got "
                             f'{which!r}')
        if not (is_number(by, 2) if isinstance(by, int)
                else is_number(by, 0, 1) and by):
            raise ValueError(
                'fades_by must be a share of the training, as 0.5, at most '
                f'1.0, or a number of iterations, as 100, got {by!r}')
        self.fades, self.fades_by = which, by
        # A tensor, so that no compiled graph has it as a constant.
        self.part = None if which is None else torch.ones(())
        self.set_progress(0, 1)

    def set_progress(self, iteration: int, iterations: int) -> None:
        """Set :attr:`part`.

        Args:
            iteration (int): The iteration that begins, from 0.
            iterations (int): How many the training has.
        """
        if self.part is not None:
            by = (self.fades_by * iterations
                  if isinstance(self.fades_by, float)
                  else min(self.fades_by, iterations))
            share = min(iteration / by, 1.0)
            left = (1 + math.cos(math.pi * share)) / 2
            self.part.fill_(left if self.fades == 'out' else 1 - left)
            self.over = self.fades == 'out' and share == 1

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor,
                channel_axis: int) -> Tensor:
        """Loss of one call of one layer.

        Args:
            student (Tensor): The student's output z_s, the batch on axis 0.
            teacher (Tensor): The teacher's output z_t of the same shape; it
                has no gradient.
            channel_axis (int): Axis of the channels, or classes: 1 for
                convolutions, -1 for linear layers.

        Returns:
            Tensor: Scalar, its weight in the objective included.
        """

    def attach(self, student: Tensor, teacher: Tensor,
               channel_axis: int) -> tuple[Tensor, Tensor]:
        """The student's output for the model to go on with, and the loss.

        A loss that can join its gradient to the model's own in one pass over
        memory overrides this; the values of the output stay.

        Args:
            student (Tensor): As for :meth:`forward`.
            teacher (Tensor): As for :meth:`forward`.
            channel_axis (int): As for :meth:`forward`.

        Returns:
            tuple[Tensor, Tensor]: The output, and the scalar that
            :meth:`forward` returns.
        """
        return student, self(student, teacher, channel_axis)


def with_share(loss: Tensor | list[Tensor],
               share: float | Tensor) -> Tensor | list[Tensor]:
    """A loss, or several, with a share of the gradient; the value stays.

    Args:
        loss (Tensor | list[Tensor]): As a model of MMEngine returns it.
        share (float | Tensor): Factor on the gradient.
    """
    if isinstance(loss, (list, tuple)):
        return [with_share(each, share) for each in loss]
    return loss.detach() + share * (loss - loss.detach())


def refuse_other_shapes(student: Tensor, teacher: Tensor) -> None:
    """Refuse maps that cannot be compared element by element.

    Raises:
        ValueError: If the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's output has shape {tuple(student.shape)} and "
            f"the teacher's {tuple(teacher.shape)}")


# -- CSD: channel-wise standardization distillation -----------------------

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
        fades (str, optional): Whether lambda falls to 0 over the training,
            'out', or rises from it, 'in', along a cosine. Defaults to None:
            it stays.
        fades_by (float): The share of the training at which it has, above 0
            and at most 1. Defaults to 1.0.

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
                 sync: bool = False,
                 fades: str | None = None,
                 fades_by: float = 1.0) -> None:
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
        self.fade(fades, fades_by)
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
                f'sync={self.sync}, fades={self.fades!r}, '
                f'fades_by={self.fades_by}')


# -- the logits: the usual knowledge distillation -------------------------

@MODELS.register_module()
class LogitKD(DistillationLoss):
    """Hinton's distillation of the last layer's output.

    ``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, the mean over all
    positions (Hinton, Vinyals and Dean, arXiv 1503.02531). The logits are the
    output of the last quantized layer in the order of
    ``model.named_modules()``, in classifiers the head's; layers of auxiliary
    heads (``aux...``) do not count.

    Args:
        loss_weight (float): Factor on the loss. Defaults to 1.0.
        temperature (float): T. Defaults to 4.0.
        layer (str, optional): Name pattern of the layer whose output the
            logits are. Defaults to None: as above.
        fades (str, optional): As in :class:`CSDLoss`. Defaults to None.
        fades_by (float): As in :class:`CSDLoss`. Defaults to 1.0.

    Raises:
        ValueError: If ``loss_weight`` is negative, ``temperature`` is not
            positive or ``layer`` is no name.

    Examples:
        >>> import torch
        >>> from fpq_plugin import LogitKD
        >>> logits = torch.randn(8, 10)
        >>> abs(LogitKD()(logits + 1, logits, -1).item()) < 1e-5
        True
    """

    label = 'kd'
    last_layer_only = True
    takes_empty = True

    def __init__(self,
                 loss_weight: float = 1.0,
                 temperature: float = 4.0,
                 layer: str | None = None,
                 fades: str | None = None,
                 fades_by: float = 1.0) -> None:
        super().__init__()
        self.fade(fades, fades_by)
        if not is_number(loss_weight, 0):
            raise ValueError('loss_weight must be a number >= 0, got '
                             f'{loss_weight!r}')
        if not is_number(temperature, 0) or temperature == 0:
            raise ValueError('temperature must be a number > 0, got '
                             f'{temperature!r}')
        if layer is not None and not (layer and isinstance(layer, str)):
            raise ValueError('layer must be the name of a layer, got '
                             f'{layer!r}')
        self.layer = layer
        self.loss_weight = loss_weight
        self.temperature = temperature

    def forward(self,
                student: Tensor,
                teacher: Tensor,
                channel_axis: int = -1) -> Tensor:
        """Loss of one pair of logits.

        Args:
            student (Tensor): The student's logits z_s.
            teacher (Tensor): The teacher's logits z_t of the same shape; it
                gets no gradient.
            channel_axis (int): The classes' axis. Defaults to -1.

        Returns:
            Tensor: Scalar, ``loss_weight`` included.

        Raises:
            ValueError: If the shapes differ.
        """
        refuse_other_shapes(student, teacher)
        own, other = (
            F.log_softmax(z.float() / self.temperature, channel_axis)
            for z in (student, teacher.detach()))
        divergence = F.kl_div(own, other, reduction='sum', log_target=True)
        classes = student.shape[channel_axis]
        positions = max(student.numel(), 1) / max(classes, 1)
        return divergence * (
            self.loss_weight * self.temperature**2 / positions)

    def extra_repr(self) -> str:
        return (f'loss_weight={self.loss_weight}, '
                f'temperature={self.temperature}, layer={self.layer!r}, '
                f'fades={self.fades!r}, fades_by={self.fades_by}')
