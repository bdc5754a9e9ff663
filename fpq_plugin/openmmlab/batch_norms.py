"""A run's batch norms, set anew before each validation and checkpoint."""

from __future__ import annotations

from typing import Any

from mmengine.dist import broadcast
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import Runner
from torch import nn

from .._compat.restoring import same_randomness
from ..batch_norms import reestimate_batch_norms
from .calibration import batch_size_of, calibration_batches, can_draw
from .model_families import calibration_forward, is_self_supervised


class BatchNormsOfRun:
    """The batch norms of a training, which are behind after an iteration.

    Args:
        num_images (int): How many training images set them, or all if there
            are fewer; 0: the running statistics stay.

    Attributes:
        behind (bool): Whether iterations came after the last time.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self.behind = False

    def catch_up(self, runner: Runner, model: nn.Module) -> None:
        """Set them anew, the same on all ranks, if they are behind.

        Self-supervised models keep theirs: they have no forward but that of
        training, which may fill a queue, and none is validated. So do models
        whose data loader does not tell how large its batches are.

        Where EMAHook averages the weights, its model is the one that is
        validated and saved, with the buffers of the student: both get the
        statistics of the averaged weights.

        Args:
            runner (Runner): The runner; its random state stays.
            model (nn.Module): The student without its wrapper.
        """
        if not (self.behind and self.num_images) or is_self_supervised(model):
            return
        self.behind = False
        loader: Any = runner.train_dataloader
        if can_draw(loader) and batch_size_of(loader) is None:
            return  # of batches of another size they would be others
        batches = calibration_batches(
            loader, self.num_images, runner.seed or 0, progress=False,
            or_fewer=True)
        averaging = [hook for hook in runner.hooks
                     if isinstance(hook, EMAHook)]
        # As for a validation: Brevitas's quantizers do not run in a copy.
        for hook in averaging:
            hook._swap_ema_parameters()
        try:
            with same_randomness():
                names = reestimate_batch_norms(
                    model, batches, calibration_forward(model))
            for name in names:
                for buffer in model.get_submodule(name).buffers():
                    broadcast(buffer)
        finally:
            for hook in averaging:
                hook._swap_ema_parameters()
        for hook in averaging:
            if not hook.ema_model.update_buffers:  # those of the student
                _copy_buffers(names, model, hook.ema_model.module)


def _copy_buffers(names: list[str], source: nn.Module,
                  target: nn.Module) -> None:
    for name in names:
        for key, buffer in source.get_submodule(name).named_buffers():
            target.get_submodule(name).get_buffer(key).copy_(buffer)


def saves_now(runner: Runner, by_epoch: bool) -> bool:
    """Whether a checkpoint follows on this epoch, or on this iteration.

    Args:
        runner (Runner): The runner, after an epoch or an iteration.
        by_epoch (bool): After which of them.
    """
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.by_epoch == by_epoch:
            when = ((hook.every_n_epochs, hook.is_last_train_epoch)
                    if by_epoch else
                    (hook.every_n_train_iters, hook.is_last_train_iter))
            if when[0](runner, hook.interval, hook.save_begin) or (
                    hook.save_last and when[1](runner)):
                return True
    return False
