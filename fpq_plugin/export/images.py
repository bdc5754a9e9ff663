"""The test images of a config, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from .parity import Batch


def ordered_images(cfg: Config) -> DataLoader:
    """The config's test data, in order and all of it in each process.

    With several processes all of them must call this: data sets meet while
    they are made. Reading from it is each one's own.

    Args:
        cfg (Config): The config of a run.

    Returns:
        DataLoader: Of ``test_dataloader``, or else ``val_dataloader``.

    Raises:
        ValueError: If the config has neither.
    """
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if loader is None:
        raise ValueError('the config has neither test_dataloader nor '
                         'val_dataloader to compare the exported model on')
    dataset = DATASETS.build(loader['dataset'])
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    # The config's sampler would deal the images out to the processes.
    own = dict(dataset=dataset, sampler=SequentialSampler(dataset),
               batch_sampler=None, persistent_workers=False)
    return Runner.build_dataloader({**loader, **own})


def image_batches(model: nn.Module, loader: DataLoader,
                  images: int) -> Iterator[Batch]:
    """The first ``images`` of ``loader``, as ``model`` takes them.

    Args:
        model (nn.Module): A model of mmengine's, with a data preprocessor.
        loader (DataLoader): What :func:`ordered_images` gave.
        images (int): How many, at least 1.

    Yields:
        Batch: Preprocessed images (N, C, H, W) and labels (N,), None if the
        data set has none.

    Raises:
        ValueError: If ``images`` is below 1.
    """
    if images < 1:
        raise ValueError(f'images must be at least 1, got {images}')
    left = images
    for data in loader:
        with torch.no_grad():
            batch = model.data_preprocessor(data, False)
        inputs, labels = batch['inputs'][:left], _labels(batch)
        yield inputs, None if labels is None else labels[:left]
        left -= len(inputs)
        if left <= 0:
            return


def _labels(batch: dict[str, Any]) -> torch.Tensor | None:
    labels: list[Any] = [
        getattr(sample, 'gt_label', None)
        for sample in batch.get('data_samples') or []
    ]
    if not labels or any(x is None or x.numel() != 1 for x in labels):
        return None
    return torch.cat([x.flatten() for x in labels])
