"""A number with its standard error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Mean of independent samples.

    Attributes:
        value (float): The mean.
        error (float): Its standard error; 0.0 of a single sample, nothing
            being known of it.
    """

    value: float
    error: float

    @classmethod
    def of(cls, samples: Tensor) -> Estimate:
        """The mean of ``samples``, shape (n, )."""
        samples = samples.double()
        error = (
            samples.std() / len(samples)**0.5
            if len(samples) > 1 else torch.zeros(()))
        return cls(float(samples.mean()), float(error))

    def __str__(self) -> str:
        return f'{self.value:.4g} +- {self.error:.2g}'
