"""The images that an exported model is run on: which, and how many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .parity import (
    MEAN_DIFFERENCE,
    Batch,
    Parity,
    ParityError,
    measure_parity,
)

# A file for any batch size is run on these, which it was not traced with.
OTHER_SIZES = (1, 7)
WAY_OUT = ('batch_size=N (fpq export --batch-size N) makes a file for '
           'batches of N alone')


def some_images(x: Tensor, size: int, first: int = 0) -> Tensor:
    """``size`` images of ``x`` from number ``first`` on, again and again.

    Args:
        x (Tensor): Images, (N, ...).
        size (int): How many.
        first (int): Number of the first. Defaults to 0.

    Returns:
        Tensor: Of shape (size, ...).
    """
    return x[torch.arange(first, first + size) % len(x)]


def rebatched(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same images in batches of one size.

    Args:
        batches (Iterable[Batch]): Inputs, each with labels or None.
        size (int): Images of a batch. If there are fewer in all, they come
            again; of more, what is left over is left out.

    Yields:
        Batch: ``size`` images.
    """
    inputs: list[Tensor] = []
    labels: list[Any] = []
    full = False
    for x, y in batches:
        inputs += list(x)
        labels += [None] * len(x) if y is None else list(y)
        while len(inputs) >= size:
            full = True
            yield _stacked(inputs[:size], labels[:size])
            del inputs[:size], labels[:size]
    if inputs and not full:
        times = -(-size // len(inputs))
        yield _stacked((inputs * times)[:size], (labels * times)[:size])


def _stacked(inputs: list[Tensor], labels: list[Any]) -> Batch:
    known = all(label is not None for label in labels)
    return torch.stack(inputs), torch.stack(labels) if known else None


def alike(batches: Iterable[Batch], example: Tensor) -> Iterator[Batch]:
    """The batches, refused if their inputs are not as an example.

    Args:
        batches (Iterable[Batch]): Inputs (N, ...), each with labels or None.
        example (Tensor): Inputs (N, ...) of the shape and type wanted.

    Yields:
        Batch: Each batch.

    Raises:
        ValueError: Naming the shapes.
    """
    for inputs, labels in batches:
        if inputs.shape[1:] != example.shape[1:] or (
                inputs.dtype != example.dtype):
            raise ValueError(
                'not exported: a file takes inputs of one shape and type, and '
                f'here are {tuple(example.shape[1:])}, {example.dtype}, and '
                f'{tuple(inputs.shape[1:])}, {inputs.dtype}')
        yield inputs.detach(), labels


def compare_batch_of(size: int, model: nn.Module,
                     exported: Callable[[Tensor], Tensor], example: Tensor,
                     known: Parity) -> None:
    """Compare two models with so many images in a batch.

    Args:
        size (int): How many.
        model (nn.Module): The trained model, in eval mode.
        exported (Callable): The exported one, from inputs to outputs.
        example (Tensor): Images, (N, ...), any number of them.
        known (Parity): The comparison on all images.

    Raises:
        ValueError: If the trained model takes no such batch.
        ParityError: If the exported one answers otherwise.
    """
    images = some_images(example, size)
    try:
        with torch.no_grad():
            model(images)
    except Exception as error:
        raise ValueError(
            f'not exported: {type(model).__name__} itself takes no batch of '
            f'{size}: {error}. {WAY_OUT}') from error
    try:
        found, = measure_parity(model, [exported], [(images, None)])
    except Exception as error:
        raise ParityError(
            f'not exported: with a batch of {size} the file fails: {error}. '
            f'{WAY_OUT}') from error
    if not found.mean_difference <= MEAN_DIFFERENCE * known.spread:
        raise ParityError(
            f'not exported: with a batch of {size} outputs differ by '
            f'{found.mean_difference:.3g} on average, of a spread of '
            f'{known.spread:.3g}. {WAY_OUT}')
