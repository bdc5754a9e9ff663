"""A fake quantizer as the numbers that a file needs, in numpy.

A fake quantizer computes ``s (clip(round(x / s) + z, low, high) - z)``
(arXiv 2503.11159, eq. (3)). An export needs the step s, the zero point z, the
bounds and a type that holds the integers: :func:`integer_grid`. For a weight
it needs the integers themselves, too: :func:`weight_integers`. Nothing here
knows of ONNX, apart from the names of its types; :mod:`.torch_int8` uses the
same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..quantizers import Quantizer
from ..targets import STANDARD, Target


@dataclass(frozen=True)
class IntegerType:
    """An integer type of the ONNX standard.

    Attributes:
        name (str): Its name there, such as 'INT4'.
        low (int): Its lowest value.
        high (int): Its highest value.
        opset (int): First opset whose QuantizeLinear takes it.
    """

    name: str
    low: int
    high: int
    opset: int

    def holds(self, low: int, high: int) -> bool:
        """Whether all integers of ``[low, high]`` fit."""
        return self.low <= low and high <= self.high


UINT8 = IntegerType('UINT8', 0, 255, 10)
INTEGER_TYPES = (
    IntegerType('UINT4', 0, 15, 21),
    IntegerType('INT4', -8, 7, 21),
    UINT8,
    IntegerType('INT8', -128, 127, 10),
)
"""From narrow to wide."""
_TYPES = {kind.name: kind for kind in INTEGER_TYPES}


def narrowest_type(low: int, high: int, stored: bool,
                   target: Target = STANDARD) -> IntegerType:
    """The first type of an engine that holds all integers of ``[low, high]``.

    Args:
        low (int): The lowest integer.
        high (int): The highest integer.
        stored (bool): Whether the file holds the integers, as of a weight.
        target (Target): Whose types. Defaults to STANDARD.

    Returns:
        IntegerType: The type.

    Raises:
        ValueError: If there is none.
    """
    names = target.weights if stored else target.features
    for name in names:
        kind = _TYPES[name]
        if kind.holds(low, high):
            return kind
    raise ValueError(f'no type of {target.title} ({", ".join(names)}) holds '
                     f'integers of {low} to {high}')


@dataclass
class IntegerGrid:
    """A quantizer's grid, for a tensor of features or a weight.

    Attributes:
        step (np.ndarray): float32, () or (C,), in units of the tensor.
        zero_point (np.ndarray): int64, of ``step``'s shape.
        low (int): Lowest integer.
        high (int): Highest integer.
        axis (int, optional): Axis with a step for each index, if any.
        type (IntegerType): The type that holds the integers.
        weight (np.ndarray, optional): int64, a weight's integers, of the
            weight's shape.
        largest_factor (int): The largest integer that a weight is multiplied
            with, as uint8. Defaults to 255.
    """

    step: np.ndarray
    zero_point: np.ndarray
    low: int
    high: int
    axis: int | None
    type: IntegerType
    weight: Any = None
    largest_factor: int = 255

    def fills_type(self) -> bool:
        """Whether its range is that of the type."""
        return (self.low, self.high) == (self.type.low, self.type.high)

    def may_saturate(self) -> bool:
        """Whether two products can pass a signed 16-bit sum."""
        return max(-self.low, self.high) > self.largest_unsaturated()

    def largest_unsaturated(self) -> int:
        """The largest integer of a weight whose products cannot."""
        return (2**15 - 1) // (2 * self.largest_factor)

    def along_axis(self, value: np.ndarray) -> np.ndarray:
        """``value``, () or (C,), so that it broadcasts to the weight."""
        if self.axis is None:
            return value
        shape = [1] * self.weight.ndim
        shape[self.axis] = -1
        return value.reshape(shape)

    def fill(self, mirrored: bool = False) -> None:
        """Multiply the weight by powers of two, and divide its step by them.

        Each channel with a step of its own gets the largest power by which
        its integers fit their type, and lead to sums of 16 bits if they did
        before.

        Args:
            mirrored (bool): Whether no integer may be lower than minus the
                highest of the type. Defaults to False.
        """
        others = tuple(axis for axis in range(self.weight.ndim)
                       if axis != self.axis)
        lowest, highest = self.weight.min(others), self.weight.max(others)
        low, high = self.type.low, self.type.high
        if mirrored:
            low = -high
        if not self.may_saturate():
            high = min(high, self.largest_unsaturated())
            low = max(low, -high)
        factor = np.ones(self.step.shape, np.int64)
        for _ in range(7):
            twice = 2 * factor
            factor = np.where(
                (twice * lowest >= low) & (twice * highest <= high)
                & ((lowest < 0) | (highest > 0)), twice, factor)
        self.weight = self.weight * self.along_axis(factor)
        self.step = (self.step / factor).astype(np.float32)
        self.low, self.high = int(self.weight.min()), int(self.weight.max())

    def transpose(self, perm: list[int]) -> None:
        """Permute the weight's axes."""
        self.weight = self.weight.transpose(perm)
        if self.axis is not None:
            self.axis = perm.index(self.axis)


def integer_grid(quantizer: Quantizer,
                 stored: bool = False,
                 target: Target = STANDARD) -> IntegerGrid:
    """The numbers that ``quantizer`` computes with.

    Args:
        quantizer (Quantizer): The quantizer.
        stored (bool): Whether the file holds its integers, as it does those
            of a weight. Defaults to False.
        target (Target): What is to take them. Defaults to STANDARD.

    Returns:
        IntegerGrid: Its grid, and the type for its integers.

    Raises:
        ValueError: With the reason, if no standard node can stand for it.
    """
    if quantizer.lacks_step():
        raise ValueError('it has no step yet: calibrate the model, or load a '
                         'checkpoint trained with FPQ')
    try:
        grid = quantizer.grid()
    except NotImplementedError as error:
        raise ValueError(str(error)) from error
    shape = () if grid.ch_axis is None else (-1, )
    step = grid.step.detach().float().cpu().numpy().reshape(shape)
    zero_point = grid.zero_point.detach().double().cpu().numpy().reshape(shape)
    if (zero_point != np.round(zero_point)).any():
        raise ValueError('its zero point is not an integer')
    low, high = int(grid.quant_min), int(grid.quant_max)
    zero_point = zero_point.astype(np.int64)
    errors = []
    # The same values, counted from elsewhere.
    for shift in _shifts(low, zero_point, stored, target):
        moved = zero_point + shift
        ends = low + int(shift.min()), high + int(shift.max())
        try:
            kind = narrowest_type(min(ends[0], int(moved.min())),
                                  max(ends[1], int(moved.max())), stored,
                                  target)
        except ValueError as error:
            errors.append(error)
        else:
            return IntegerGrid(step, moved, *ends, grid.ch_axis, kind)
    if target.zero_points:
        raise errors[0]
    asked = f'{low} to {high}'
    if zero_point.any():
        asked += f' around {zero_point.flat[0]}'
    raise ValueError(
        f'{target.title} takes integers of INT8 around 0, not of {asked}: '
        'train it with symmetric=True, or with 7 bits') from errors[0]


def _shifts(low: int, zero_point: np.ndarray, stored: bool,
            target: Target) -> list[np.ndarray]:
    """What may be added to integers and zero points, the best first."""
    from_zero = [-zero_point]
    if not target.zero_points:
        return from_zero
    lowest = _TYPES[(target.weights if stored else target.features)[0]].low
    return (from_zero if stored and target.fills_weights else []) + [
        np.zeros_like(zero_point),
        np.full_like(zero_point, lowest - min(low, int(zero_point.min())))]


@torch.no_grad()
def weight_integers(quantizer: Quantizer,
                    weight: np.ndarray,
                    target: Target = STANDARD) -> IntegerGrid:
    """The same, with the integers of ``weight`` itself.

    Args:
        quantizer (Quantizer): The weight's quantizer.
        weight (np.ndarray): float32, as the quantizer takes it.
        target (Target): What is to take them. Defaults to STANDARD.

    Returns:
        IntegerGrid: The grid, with ``weight``.

    Raises:
        ValueError: With the reason, if the values that the quantizer gives
            are not those of its integers.
    """
    found = integer_grid(quantizer, True, target)
    values = quantizer.fake_quantize(torch.tensor(
        weight, device=quantizer.bits.device)).cpu().numpy()
    found.weight = np.zeros(weight.shape, np.int64)
    step = found.along_axis(found.step)
    zero_point = found.along_axis(found.zero_point)
    found.weight += np.round(values / step).astype(np.int64) + zero_point
    again = (found.weight - zero_point).astype(np.float32) * step
    far = np.abs(again - values).max(initial=0)
    if (found.weight < found.low).any() or (found.weight > found.high).any(
    ) or far > 1e-5 * np.abs(values).max(initial=0):
        raise ValueError(
            f'its values are no integers of {found.low} to {found.high} '
            f'times its step (off by {far:g})')
    return found
