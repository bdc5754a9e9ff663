"""A fake quantizer whose step is known before there is data."""

from __future__ import annotations

import torch
from torch import Tensor

from .base_fake_quantize import BaseFakeQuantize
from .grid import Stage


class FixedFakeQuantize(BaseFakeQuantize):
    """8 bits for values of 0 to 1: nothing is calibrated, nothing learned.

    It is ready from the start. The gradient goes straight through inside of
    its range.

    Args:
        levels (int): One over the step: 255 if the values reach 1, 256 if
            they stay below it.

    Examples:
        >>> import torch
        >>> FixedFakeQuantize(256)(torch.tensor([0.5, 1.]))
        tensor([0.5000, 0.9961])
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.scale.fill_(1 / levels)
        self._become(Stage.READY)

    def _make_scale(self, scale: Tensor) -> None:
        self.scale: Tensor
        self.register_buffer('scale', scale)

    def step(self) -> Tensor:
        """One over :attr:`levels`, shape (1,)."""
        return self.scale

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Fake quantize ``x`` of any shape with the fixed step."""
        return self.quantize(x, self.scale)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Do nothing: no range changes the step."""
