"""The integers behind a fake quantizer's values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Values ``(q - zero_point) * step``, q an integer of a range; spec (3).

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
