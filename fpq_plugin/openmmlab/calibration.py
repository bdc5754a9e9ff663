"""The calibration of a run: on its training images, the same on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch import nn
from torch.utils.data import DataLoader, Subset

from .._compat.restoring import same_randomness
from ..calibrate import calibrate, uninitialized
from ..options import refuse_unknown
from ..quantizers import Quantizer
from .model_families import calibration_forward, forward_loss


def calibration_batches(loader: DataLoader, num_images: int, seed: int,
                        progress: bool) -> Iterator[Any]:
    """Batches of ``num_images`` training images, drawn without repetition.

    They go through the training pipeline and the loader's own collate
    function, in the calling process.

    Args:
        loader (DataLoader): The training data loader.
        num_images (int): How many images.
        seed (int): Seed of the draw.
        progress (bool): Whether to show a progress bar.

    Yields:
        Any: What the loader's collate function returns.

    Raises:
        ValueError: If the training set has fewer images, or no length.
    """
    dataset = loader.dataset
    if not hasattr(dataset, '__len__'):
        raise ValueError('calibration: the training set is an iterable '
                         'without a length; FPQ needs one with a length')
    if len(dataset) < num_images:
        raise ValueError(
            f'calibration.num_images: {num_images} images asked for, the '
            f'training set has {len(dataset)}. Lower it in the fpq options.')
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset), generator=generator)
    batch_size = min(loader.batch_size or 32, num_images)
    batches = DataLoader(
        Subset(dataset, order[:num_images].tolist()),
        batch_size=batch_size,
        collate_fn=loader.collate_fn)
    bar = ProgressBar(len(batches)) if progress else None
    for batch in batches:
        yield batch
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.file.write('\n')


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
