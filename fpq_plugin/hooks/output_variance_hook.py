"""The output's variance under input noise over training, as in Fig. 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmengine.registry import HOOKS
from torch import nn

from ..analysis import Batch, Estimate, output_variance
from .measure_hook import MeasureHook


@HOOKS.register_module()
class OutputVarianceHook(MeasureHook):
    """Logs ``output_variance`` under Gaussian input noise.

    Args:
        sigma (float): Standard deviation of the noise, in units of the
            preprocessed input. Defaults to 0.1.
        draws (int): Draws for each image, at least 2. Defaults to 4.
        interval (int): Epochs between measurements. Defaults to 1.
        num_images (int): Training images, drawn once. Defaults to 256.
        seed (int): Seed of all draws. Defaults to 0.
    """

    title = 'output_variance'

    def __init__(self,
                 sigma: float = 0.1,
                 draws: int = 4,
                 interval: int = 1,
                 num_images: int = 256,
                 seed: int = 0) -> None:
        super().__init__(interval, num_images, seed=seed)
        self._check(draws=draws)
        if draws < 2:
            raise ValueError('OutputVarianceHook.draws: a variance needs 2 or '
                             f'more, got {draws}')
        if isinstance(sigma, bool) or not (
                isinstance(sigma, (int, float)) and 0 < sigma < math.inf):
            raise ValueError('OutputVarianceHook.sigma: must be a positive '
                             f'number, got {sigma!r}')
        self.sigma = sigma
        self.draws = draws

    def measure(self, model: nn.Module,
                batches: Sequence[Batch]) -> dict[str, Estimate]:
        found = output_variance(
            model, batches, [self.sigma], self.draws, seed=self.seed)
        return {'': found.variances[0]}
