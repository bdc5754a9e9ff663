"""Integers as ONNX's standard types hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto


@dataclass(frozen=True)
class Carrier:
    """A standard integer type.

    Attributes:
        code (int): ONNX's number of the type.
        low (int): Its lowest value.
        high (int): Its highest value.
        opset (int): First opset whose QuantizeLinear takes it.
    """

    code: int
    low: int
    high: int
    opset: int

    def holds(self, low: int, high: int) -> bool:
        """Whether all integers of ``[low, high]`` fit."""
        return self.low <= low and high <= self.high

    def tensor(self, values: np.ndarray) -> TensorProto:
        """``values`` in this type, two in a byte if it has four bits."""
        flat = np.ascontiguousarray(values).ravel().astype(np.int16)
        if self.high - self.low == 15:
            nibbles = np.pad(flat & 15, (0, flat.size % 2))
            packed = (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8)
        else:
            packed = (flat & 255).astype(np.uint8)
        return TensorProto(
            data_type=self.code,
            dims=values.shape,
            raw_data=packed.tobytes())


UINT8 = Carrier(TensorProto.UINT8, 0, 255, 10)
CARRIERS = (
    Carrier(TensorProto.UINT4, 0, 15, 21),
    Carrier(TensorProto.INT4, -8, 7, 21),
    UINT8,
    Carrier(TensorProto.INT8, -128, 127, 10),
)
"""From narrow to wide."""


def carrier(low: int, high: int, stored: bool) -> Carrier:
    """The narrowest type that holds all integers of ``[low, high]``.

    Signed ranges get a signed type: weights stay symmetric. Features, which
    are not stored, get eight bits: onnxruntime 1.24 cannot open a Clip, as
    ReLU6 is one, in front of a QuantizeLinear to four.

    Raises:
        ValueError: If there is none.
    """
    for kind in CARRIERS:
        if kind.holds(low, high) and (kind.low < 0) == (low < 0) and (
                stored or kind.opset < 21):
            return kind
    raise ValueError(f'no standard type holds integers of {low} to {high}')
