"""Which images a file is compared on, and how many at once."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

Batch = tuple[Tensor, Tensor | None]
"""Inputs (N, ...) and labels (N,), or None."""

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
                f'{tuple(inputs.shape[1:])}, {inputs.dtype}: let the test '
                'pipeline end in one size, by Resize and Pad')
        yield inputs.detach(), labels


def with_progress(
        batches: Iterable[Batch],
        total: int,
        console: Console | None = None) -> Generator[Batch, None, None]:
    """The same batches, with a bar of the images that were compared.

    Nothing is drawn unless the console is a terminal, and nothing stays.

    Args:
        batches (Iterable[Batch]): What to run models on.
        total (int): Images in all of them.
        console (Console, optional): Where to draw. Defaults to None, stderr.

    Yields:
        Batch: Each batch.
    """
    console = console or Console(stderr=True)
    with Progress(
            TextColumn('comparing'), BarColumn(), MofNCompleteColumn(),
            TextColumn('images'), console=console, transient=True,
            disable=not console.is_terminal) as progress:
        task = progress.add_task('', total=total)
        for inputs, labels in batches:
            yield inputs, labels
            progress.advance(task, len(inputs))
