"""Distillation of the logits, the usual knowledge distillation."""

from __future__ import annotations

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from ..options import is_number
from .base import DistillationLoss, refuse_other_shapes


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
                 layer: str | None = None) -> None:
        super().__init__()
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
                f'temperature={self.temperature}, layer={self.layer!r}')
