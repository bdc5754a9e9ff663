"""Telling of steps that run away, which spoils a training without a NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .quantizers import Quantizer
from .state import first_few

# Steps of good trainings were seen to grow 50 times.
FACTOR = 1000
# A layer that saw but one value in the calibration has no range to grow from.
LEAST_START = 1e-3


class RunawaySteps:
    """Compares the quantizers' steps with those that a training began with.

    Args:
        model (nn.Module): A converted and calibrated model.
        warn (Callable): Told once of the steps that have run away.
    """

    def __init__(self, model: nn.Module, warn: Callable[[str], Any]) -> None:
        self._model = model
        self._warn = warn
        self._start = self._steps()

    def look(self) -> None:
        """Warn of those that are more than ``FACTOR`` times as large."""
        now = self._steps()
        found = [
            f'{name} ({start:.2g}, now {now[name]:.2g})'
            for name, start in self._start.items()
            if now.get(name, 0) > FACTOR * max(start, LEAST_START)
        ]
        if found:
            self._start = {}
            self._warn(
                f'FPQ: the steps of {first_few(found, 3)} have grown more '
                f'than {FACTOR} times: the training has diverged. Start '
                'again with a lower learning rate, or with scale_lr_mult=0.1')

    def _steps(self) -> dict[str, float]:
        """Each quantizer's step, of several channels the largest."""
        return {
            name: float(module.step().max())
            for name, module in self._model.named_modules()
            if isinstance(module, Quantizer) and module.has_step()
        }
