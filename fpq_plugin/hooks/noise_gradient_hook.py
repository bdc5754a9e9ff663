"""The gradient's norm under noise over training, as in Fig. 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import HOOKS
from torch import nn

from ..analysis import Batch, Estimate, noise_gradient_norm
from .measure_hook import MeasureHook


@HOOKS.register_module()
class NoiseGradientHook(MeasureHook):
    """Logs ``noise_gradient_clean``, ``_feature`` and ``_weight``.

    Norms of the task loss's gradient in the latent weights, without noise
    and with noise of one step in every layer's input, or weight.

    Args:
        draws (int): Draws of the noise. Defaults to 4.
        **common: Those of :class:`MeasureHook`.
    """

    title = 'noise_gradient'

    def __init__(self, draws: int = 4, **common: Any) -> None:
        super().__init__(**common)
        self._check(draws=draws)
        self.draws = draws

    def measure(self, model: nn.Module,
                batches: Sequence[Batch]) -> dict[str, Estimate]:
        found = noise_gradient_norm(
            model, batches, self.draws, layers=self.layers, seed=self.seed)
        return dict(
            clean=Estimate(found.clean, 0.0),
            feature=found.feature,
            weight=found.weight)
