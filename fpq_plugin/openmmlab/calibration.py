"""The calibration of a run: on its training images, the same on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader, Subset

from .._compat.restoring import same_randomness
from ..calibrate import calibrate, uninitialized
from ..quantizers import named_quantizers
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
    yield from track(batches, 'drawing images', console=Console(stderr=True),
                     disable=not progress)


def calibrate_run(runner: Runner, model: nn.Module, num_images: int) -> None:
    """Set the first steps and zero points before a Runner trains, on rank 0.

    Args:
        runner (Runner): The runner.
        model (nn.Module): The student without its wrapper.
        num_images (int): How many training images.

    Raises:
        ValueError: If the training set has fewer, or a range is not finite.
    """
    start = time.time()
    runner.logger.info(f'FPQ calibrates on {num_images} training images')

    def observe(forward: Callable, training: bool = False) -> None:
        batches = calibration_batches(
            runner.train_dataloader,
            num_images,
            runner.seed or 0,
            progress=is_main_process())
        with same_randomness():
            calibrate(model, batches, forward, lambda _: None, training)

    if is_main_process():
        observe(calibration_forward(model))
    _broadcast_quantizers(model)
    if uninitialized(model):
        # Auxiliary heads and the like. On all ranks, since a loss may hold
        # collectives; rank 0's result counts.
        observe(forward_loss, training=True)
        _broadcast_quantizers(model)
    runner.logger.info(f'FPQ calibrated in {time.time() - start:.1f} s')


def _broadcast_quantizers(model: nn.Module) -> None:
    for quantizer in named_quantizers(model).values():
        for tensor in quantizer.state_dict().values():
            broadcast(tensor)
        quantizer.read_stage()
