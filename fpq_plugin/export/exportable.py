"""What every export asks of a model, and what it takes of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..quantizers import Quantizer
from ..targets import STANDARD, Target
from .images import Batch, alike, rebatched
from .integers import integer_grid


def refuse_unexportable(model: nn.Module,
                        target: Target = STANDARD) -> None:
    """Name every quantizer that no node that the engine takes can stand for.

    Args:
        model (nn.Module): A quantized model.
        target (Target): What is to take the file. Defaults to STANDARD.

    Raises:
        ValueError: Naming them, with the reasons.
    """
    reasons = []
    for name, quantizer in quantizers_of(model).items():
        try:
            integer_grid(quantizer, target=target)
        except ValueError as error:
            reasons.append(f'{name}: {error}')
    if reasons:
        raise ValueError('not exported: ' + '\n  '.join(reasons))


def quantizers_of(model: nn.Module) -> dict[str, Quantizer]:
    """The fake quantizers that are switched on, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
        and (module.has_step() or module.lacks_step())
    }


def refuse_unfit(model: nn.Module) -> None:
    """Name a weight that is not in float32 on the CPU.

    Raises:
        ValueError: Naming it.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.device.type != 'cpu' or isinstance(value, nn.Parameter) and (
                value.is_floating_point() and value.dtype != torch.float32):
            raise ValueError(
                f'not exported: {name} is {value.dtype} on {value.device}, '
                'and an export takes float32 on the CPU: model.float().cpu()')


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's wrapper, or one of several devices."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, '_orig_mod', None), nn.Module):
            model = model._orig_mod
        else:
            return model


def checked_path(path: str | os.PathLike, batch_size: int | None,
                 target: Target = STANDARD) -> Path:
    """The file to write.

    Args:
        path (str | os.PathLike): The file.
        batch_size (int, optional): The only batch size that it is to take;
            None: any.
        target (Target): What is to take the file. Defaults to STANDARD, which
            any file is for.

    Returns:
        Path: The same.

    Raises:
        TypeError: If the batch size is not an integer.
        ValueError: If it is below 1, or the target takes no such file.
        FileNotFoundError: If there is no folder for the file.
    """
    if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int)):
        raise TypeError('batch_size must be an integer or None, got '
                        f'{batch_size!r}')
    if batch_size is not None and batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    path = Path(path)
    if target is not STANDARD and path.suffix not in target.endings:
        raise ValueError(
            f'not exported: {target.title} takes {" or ".join(target.endings)}'
            f', and the file is {path.name}: give it such an ending, or leave '
            'the target out')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'not exported: no folder {path.parent}')
    return path


def compared_batches(batches: Iterable[Batch], batch_size: int | None
                     ) -> tuple[Tensor, Iterator[Batch]]:
    """What the trained and the exported model are compared on.

    Args:
        batches (Iterable[Batch]): Real inputs (N, ...), each with labels or
            None.
        batch_size (int, optional): Make batches of so many; None: leave them.

    Returns:
        tuple: The first inputs, and all batches, refused as they are read if
        they are not as the first.

    Raises:
        ValueError: If there is no input, or the first is not float32.
    """
    if batch_size is not None:
        batches = rebatched(batches, batch_size)
    batches = iter(batches)
    first = next(batches, None)
    if first is None or not len(first[0]):
        raise ValueError('not exported: there is no input to compare on')
    example = first[0].detach()
    if example.is_floating_point() and example.dtype != torch.float32:
        raise ValueError('not exported: inputs must be float32, got '
                         f'{example.dtype}')
    return example, alike(chain([first], batches), example)
