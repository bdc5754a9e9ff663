"""The Hessian's trace over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import HOOKS
from torch import nn

from ..analysis import Batch, Estimate, hessian_trace
from .measure_hook import MeasureHook


@HOOKS.register_module()
class HessianTraceHook(MeasureHook):
    """Logs ``hessian_trace``, the trace that FPQ keeps low (equation (7)).

    It is that of the task loss alone, in the latent weights.

    Args:
        probes (int): Probes of an estimate. Defaults to 16.
        **common: Those of :class:`MeasureHook`.
    """

    title = 'hessian_trace'
    modules = ('curvlinops', 'matplotlib')

    def __init__(self, probes: int = 16, **common: Any) -> None:
        super().__init__(**common)
        self._check(probes=probes)
        self.probes = probes

    def measure(self, model: nn.Module,
                batches: Sequence[Batch]) -> dict[str, Estimate]:
        found = hessian_trace(
            model, batches, self.probes, layers=self.layers, seed=self.seed)
        return {'': found.total}
