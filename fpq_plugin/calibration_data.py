"""Calibration images drawn from a Runner's training set."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.utils import ProgressBar
from torch.utils.data import DataLoader, Subset


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


@contextmanager
def same_randomness() -> Iterator[None]:
    """Give every global random generator back its state on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
