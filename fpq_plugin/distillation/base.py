"""What every distillation loss is: a comparison of two layers' outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


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


def refuse_other_shapes(student: Tensor, teacher: Tensor) -> None:
    """Refuse maps that cannot be compared element by element.

    Raises:
        ValueError: If the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's output has shape {tuple(student.shape)} and "
            f"the teacher's {tuple(teacher.shape)}")
