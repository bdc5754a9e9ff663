"""The calibration of a run: on its training images, the same on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

from mmengine.dist import broadcast, is_main_process
from mmengine.runner import Runner
from torch import nn

from ..calibrate import calibrate, uninitialized
from ..calibration_data import calibration_batches, same_randomness
from ..forward_mode import calibration_forward, forward_loss
from ..options import refuse_unknown
from ..quantizers import Quantizer

DEFAULT_CALIBRATION = dict(num_images=100)


class RunCalibration:
    """Sets the first steps and zero points before a Runner trains.

    Args:
        options (dict): The hook's ``calibration``.

    Raises:
        TypeError: If it is no dict.
        ValueError: If an option is unknown or has a wrong value.
    """

    def __init__(self, options: dict) -> None:
        if not isinstance(options, dict):
            raise TypeError(
                f'fpq.calibration: must be a dict, got {options!r}')
        refuse_unknown('fpq.calibration', options, list(DEFAULT_CALIBRATION))
        number = {**DEFAULT_CALIBRATION, **options}['num_images']
        if (isinstance(number, bool) or not isinstance(number, int)
                or number < 1):
            raise ValueError('fpq.calibration.num_images: must be a positive '
                             f'integer, got {number!r}')
        self.num_images = number

    def run(self, runner: Runner, model: nn.Module) -> None:
        """Calibrate ``model``, the student without its wrapper, on rank 0."""
        start = time.time()
        runner.logger.info(f'FPQ calibrates on {self.num_images} training '
                           'images')
        if is_main_process():
            self._observe(runner, model, calibration_forward(model))
        _broadcast_quantizers(model)
        if uninitialized(model):
            # Auxiliary heads and the like. On all ranks, since a loss may
            # hold collectives; rank 0's result counts.
            self._observe(runner, model, forward_loss, training=True)
            _broadcast_quantizers(model)
        runner.logger.info(f'FPQ calibrated in {time.time() - start:.1f} s')

    def _observe(self, runner: Runner, model: nn.Module, forward: Callable,
                 training: bool = False) -> None:
        batches = calibration_batches(
            runner.train_dataloader,
            self.num_images,
            runner.seed or 0,
            progress=is_main_process())
        with same_randomness():
            calibrate(model, batches, forward, lambda _: None, training)


def _broadcast_quantizers(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Quantizer):
            for tensor in module.state_dict().values():
                broadcast(tensor)
