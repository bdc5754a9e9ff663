"""The calibration of a run: on its training images, the same on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from .._compat.restoring import same_randomness
from ..calibrate import calibrate, uninitialized
from ..quantizers import named_quantizers
from .model_families import calibration_forward, forward_loss


def calibration_batches(loader: Any, num_images: int, seed: int,
                        progress: bool,
                        or_fewer: bool = False) -> Iterator[Any]:
    """Batches of ``num_images`` training images, drawn without repetition.

    They go through the training pipeline and the loader's own collate
    function, in the calling process, and are no larger than the loader's own.
    Where images cannot be drawn (an iterable set, samples that are batches),
    they are the first that the loader's set gives.

    Args:
        loader (DataLoader): The training data loader, or any iterable of
            batches.
        num_images (int): How many images.
        seed (int): Seed of the draw.
        progress (bool): Whether to show a progress bar.
        or_fewer (bool): Whether all will do, if there are fewer. Defaults to
            False.

    Yields:
        Any: What the loader's collate function returns.

    Raises:
        ValueError: If the training set has fewer images.
    """
    if can_draw(loader):
        batches = _drawn(loader, num_images, seed, or_fewer)
    else:
        batches = _first(loader, num_images, or_fewer)
    yield from track(batches, 'drawing images', console=Console(stderr=True),
                     disable=not progress)


def can_draw(loader: Any) -> bool:
    """Whether any sample of the set is one image, got by its number."""
    return (isinstance(loader, DataLoader)
            and not isinstance(loader.dataset, IterableDataset)
            and hasattr(loader.dataset, '__len__')
            and loader.batch_sampler is not None)


def _drawn(loader: DataLoader, num_images: int, seed: int,
           or_fewer: bool) -> Any:
    dataset: Any = loader.dataset
    if len(dataset) < num_images:
        if not or_fewer:
            raise _too_few(num_images, len(dataset))
        num_images = len(dataset)
    # A batch sampler may be of any kind: by one image no batch is too large.
    size = min(batch_size_of(loader) or 1, num_images)
    if or_fewer and size > 1 and num_images % size == 1:
        num_images -= 1  # one image alone has no variance
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset), generator=generator)
    return DataLoader(
        Subset(dataset, order[:num_images].tolist()),
        batch_size=size,
        collate_fn=loader.collate_fn)


def batch_size_of(loader: DataLoader) -> int | None:
    """How many images a loader's batches have; None if it does not tell."""
    own = loader.batch_size or getattr(loader.batch_sampler, 'batch_size',
                                       None)
    return own if isinstance(own, int) else None


def _first(loader: Any, num_images: int, or_fewer: bool) -> Iterator[Any]:
    batches = loader
    if isinstance(loader, DataLoader):  # without its workers
        iterable = isinstance(loader.dataset, IterableDataset)
        batches = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=None if iterable else loader.sampler,
            collate_fn=loader.collate_fn)
    number = 0
    for batch in batches:
        number += images_in(batch)
        yield batch
        if number >= num_images:
            return
    if not or_fewer:
        raise _too_few(num_images, number)


def images_in(batch: Any) -> int:
    """How many images a batch has; of several views the first's."""
    while True:
        if isinstance(batch, Mapping):
            batch = batch.get('inputs', next(iter(batch.values()), None))
        elif isinstance(batch, torch.Tensor):
            return len(batch) if batch.dim() else 1
        elif not isinstance(batch, (tuple, list)) or not batch:
            return 1
        elif isinstance(batch[0], Mapping) or _is_image(batch[0]):
            return len(batch)
        else:
            batch = batch[0]


def _is_image(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 3


def _too_few(wanted: int, found: int) -> ValueError:
    return ValueError(
        f'calibration.num_images: {wanted} images asked for, the training '
        f'set has {found}. Lower it in the fpq options.')


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
            calibrate(model, batches, forward, tell, training)

    def tell(text: str) -> None:
        # Inputs that no forward reaches the hook tells of, when all ran.
        if 'reached no input' not in text:
            runner.logger.warning(f'FPQ: {text}')

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
