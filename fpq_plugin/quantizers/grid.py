"""What describes a fake quantizer: its integers, its bits, its stage."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

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
