"""The fixed batches that all models of an analysis see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import nn
from torch.utils.data import DataLoader

from ..calibration_data import calibration_batches, same_randomness
from .batch import MMBatch

SPLITS = dict(train='train_dataloader', val='val_dataloader',
              test='test_dataloader')


def loader_of(config: Config, split: str) -> DataLoader:
    """Build the data loader of a config.

    Args:
        config (Config): The config.
        split (str): 'train', 'val' or 'test'.

    Raises:
        ValueError: If the config has none, or its data set cannot be built.
    """
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    key = SPLITS[split]
    cfg = config.get(key)
    if cfg is None:
        raise ValueError(f'no data: the config {config.filename!r} has no '
                         f'{key}; name another split of {", ".join(SPLITS)}')
    try:
        return Runner.build_dataloader(cfg, seed=0)
    except (OSError, AssertionError, RuntimeError) as error:
        raise ValueError(f'no data: {key} of {config.filename!r} cannot be '
                         f'built: {error}') from error


def draw(loader: DataLoader, num_images: int, seed: int,
         progress: bool) -> list[Any]:
    """Draw images without repetition, through the loader's pipeline.

    Images and augmentations depend on the seed alone; the global random
    generators stay.

    Args:
        loader (DataLoader): Where data set, pipeline, batch size and collate
            function come from.
        num_images (int): How many images.
        seed (int): Seed of the draw.
        progress (bool): Whether to show a bar.

    Returns:
        list[Any]: Batches as the collate function returns them.

    Raises:
        ValueError: If the data set has fewer images, or no length.
    """
    size = len(loader.dataset) if hasattr(loader.dataset, '__len__') else None
    if size is not None and size < num_images:
        raise ValueError(f'no data: {num_images} images asked for, the data '
                         f'set has {size}')
    with same_randomness():
        set_random_seed(seed)
        return list(calibration_batches(loader, num_images, seed, progress))


def prepared(model: nn.Module, batches: Sequence[Any]) -> list[MMBatch]:
    """The batches after the model's preprocessor, on the model's device."""
    with torch.no_grad():
        return [MMBatch(model, batch) for batch in batches]
