"""In which of MMEngine's forward modes calibration and the teacher run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .calibration_data import same_randomness
from .proposals import has_point_head
from .self_supervised import is_self_supervised


def only_in_loss_mode(model: nn.Module) -> bool:
    """Whether ``mode='tensor'`` does not run the layers that training runs.

    So it is with mmpretrain's self-supervised models, whose other modes are
    the encoder alone, and with mmseg's PointRend, which has none.
    """
    return is_self_supervised(model) or has_point_head(model)


def teacher_forward(model: nn.Module) -> Callable[..., Any]:
    """How the teacher is run beside a student's forward.

    Args:
        model (nn.Module): The student.

    Returns:
        Callable: Takes the teacher, and the student's args and kwargs.
    """
    return _run_loss_mode if only_in_loss_mode(model) else _run_tensor_mode


def calibration_forward(model: nn.Module) -> Callable[..., Any]:
    """How a batch of the training data is run for calibration.

    Args:
        model (nn.Module): The student.

    Returns:
        Callable: Takes the student and a batch.
    """
    return forward_loss if only_in_loss_mode(model) else _forward_tensor


def forward_loss(model: nn.Module, batch: Any) -> Any:
    """Run ``batch`` as a training step does."""
    data = model.data_preprocessor(batch, True)
    return model._run_forward(data, mode='loss')


def is_loss_mode(kwargs: dict) -> bool:
    """Whether a forward's keyword arguments ask for the loss."""
    return kwargs.get('mode') == 'loss'


def _forward_tensor(model: nn.Module, batch: Any) -> Any:
    data = model.data_preprocessor(batch, False)
    return model._run_forward(data, mode='tensor')


def _run_tensor_mode(teacher: nn.Module, args: tuple, kwargs: dict) -> Any:
    # The same layers as in 'loss' mode, without the loss.
    return teacher(*args, **{**kwargs, 'mode': 'tensor'})


def _run_loss_mode(teacher: nn.Module, args: tuple, kwargs: dict) -> Any:
    # A mask that the student draws must be the teacher's as well.
    with same_randomness():
        return teacher(*args, **kwargs)
