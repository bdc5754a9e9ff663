"""A fake quantizer's integers, bits and stages, and the ranges for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Values ``(q - zero_point) * step``, q an integer of a range, eq. (3).

    Attributes:
        step (Tensor): Positive, in units of the input, (1,) or (C,).
        zero_point (Tensor): Integers, of ``step``'s shape.
        quant_min (int): Lowest q.
        quant_max (int): Highest q.
        ch_axis (int, optional): Axis that has a step for each index, if any.
    """

    step: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    ch_axis: int | None = None


MIN_BITS, MAX_BITS = 2, 8


class Stage(IntEnum):
    """Where a quantizer is in its life, as its state's ``initialized`` says.

    Attributes:
        NEW: It has no step yet.
        READY: It has a step, and quantizes.
        IDLE: No forward reaches it; it passes its input on.
        OBSERVING: It collects the range of what it sees; never stored.
        WAITING: What it saw was all zero: it passes its input on until a
            training batch has other values, which give it its step.
    """

    NEW = 0
    READY = 1
    IDLE = 2
    OBSERVING = 3
    WAITING = 4


def along_channels(value: Tensor, x: Tensor, ch_axis: int | None) -> Tensor:
    """Let a tensor of one element per channel broadcast to ``x``.

    Args:
        value (Tensor): Shape (1,) or, with ``ch_axis``, (C,).
        x (Tensor): What it is to broadcast to, any shape.
        ch_axis (int, optional): Channel axis of ``x``; None: ``value`` is
            returned as it is.
    """
    if ch_axis is None:
        return value
    shape = [1] * x.dim()
    shape[ch_axis] = -1
    return value.view(shape)


def check_bits(bits: int) -> None:
    """Refuse ``bits`` that no quantizer of FPQ has.

    Raises:
        ValueError: If ``bits`` is not an integer of 2 to 8.
    """
    if (isinstance(bits, bool) or not isinstance(bits, int)
            or not MIN_BITS <= bits <= MAX_BITS):
        raise ValueError(f'bits must be an integer of {MIN_BITS} to '
                         f'{MAX_BITS}, got {bits!r}')


def integer_range(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """The lowest and the highest integer of a quantizer.

    Args:
        bits (int): Its bits q.
        signed (bool): ``[-2^(q-1), 2^(q-1)-1]`` instead of ``[0, 2^q-1]``.
        narrow (bool): Whether the lowest of signed ones is left out.

    Raises:
        TypeError: If ``narrow`` is no bool.
        ValueError: If it is asked for unsigned integers.
    """
    if not isinstance(narrow, bool):
        raise TypeError(f'narrow_range must be True or False, got {narrow!r}')
    if narrow and not signed:
        raise ValueError('narrow_range leaves out the lowest of signed '
                         'integers, and these are unsigned')
    low = -2**(bits - 1) if signed else 0
    return low + narrow, low + 2**bits - 1


# -- ranges: shrunk to the least error, and those of zeros ----------------

OBSERVERS = ('min_max', 'mse')
# Shares of the full range that are tried.
SHARES = 64
# So many elements of a row speak for it.
SAMPLE = 2**16


def mse_range(low: Tensor, high: Tensor, rows: Tensor,
              quantize: Callable[[Tensor, Tensor, Tensor], Tensor]
              ) -> tuple[Tensor, Tensor]:
    """Shrink ranges to where the mean squared quantization error is least.

    Tried are ``k / 64`` of ``[low, high]``, k = 1 to 64, the same for both
    ends, so that a quantizer that holds the whole range is among them. Of
    rows longer than 65,536 so many elements, the same in each call, count.

    Args:
        low (Tensor): Lowest value of each row, of shape (C,).
        high (Tensor): Highest value of each row, of shape (C,).
        rows (Tensor): The values, of shape (C, n).
        quantize (Callable): Of rows, lowest and highest value to hold the
            quantized rows.

    Returns:
        tuple: The shrunk ``low`` and ``high``, each of shape (C,).
    """
    if rows.shape[1] > SAMPLE:
        same = torch.Generator().manual_seed(0)
        chosen = torch.randint(rows.shape[1], (SAMPLE, ), generator=same)
        rows = rows[:, chosen.to(rows.device)]
    least = torch.full_like(low, torch.inf)
    best = torch.ones_like(low)
    for k in range(SHARES, 0, -1):
        share = k / SHARES
        error = (quantize(rows, low * share, high * share) - rows).square()
        error = error.mean(dim=1)
        best = torch.where(error < least, share, best)
        least = torch.minimum(error, least)
    return low * best, high * best


def fill_zeros(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor] | None:
    """Give channels of nothing but zeros the mean range of the others.

    Args:
        low (Tensor): Lowest value of each channel, of shape (C,).
        high (Tensor): Highest value of each channel, of shape (C,).

    Returns:
        tuple | None: ``low`` and ``high`` of all channels; None if all are
        zero.
    """
    zero = (low == 0) & (high == 0)
    if not zero.any():
        return low, high
    if zero.all():
        return None
    return (torch.where(zero, low[~zero].mean(), low),
            torch.where(zero, high[~zero].mean(), high))


def weight_to_come(weight: Tensor, axis: int | None = None) -> Tensor:
    """What an all-zero weight is calibrated as; any other, as it is.

    It will grow to what layers usually have: values spread evenly over
    ``+-1 / sqrt(n)``, n the elements of an output channel, as torch draws
    them.

    Args:
        weight (Tensor): A weight of any shape.
        axis (int, optional): Its output channels' axis. If given, single
            channels that are all zero become spread over the mean range of
            the others. Defaults to None: they stay.

    Returns:
        Tensor: A weight of the same shape.
    """
    if weight.numel() == 0:
        return weight
    if weight.dim() == 1:
        return weight if weight.any() else weight_to_come(weight[None])[0]
    rows = weight.detach().movedim(axis or 0, 0).flatten(1)
    reach = rows.abs().amax(1)
    zero = reach == 0
    if not zero.any() or (axis is None and not zero.all()):
        return weight
    n = rows.shape[1]
    spread = torch.linspace(-1, 1, n) if n > 1 else torch.ones(1)
    far = 1 / math.sqrt(n) if zero.all() else float(reach[~zero].mean())
    rows = rows.clone()
    rows[zero] = far * spread.to(rows)
    shape = weight.movedim(axis or 0, 0).shape
    return rows.view(shape).movedim(0, axis or 0)
