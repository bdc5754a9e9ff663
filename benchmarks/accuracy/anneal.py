"""Of the study: lambda falls to 0 along a cosine."""

from __future__ import annotations

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from fpq_plugin import FPQHook


@HOOKS.register_module()
class AnnealDistillation(Hook):
    """Scales each distillation loss's weight by a cosine from 1 to 0."""

    def before_train(self, runner: Runner) -> None:
        """Find the losses and their weights."""
        hook, = (h for h in runner.hooks if isinstance(h, FPQHook))
        self._weights = [(c, c.loss_weight) for c in hook.criteria]

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Set the weights of this iteration."""
        part = runner.iter / runner.max_iters
        for criterion, weight in self._weights:
            criterion.loss_weight = weight * (1 + math.cos(math.pi * part)) / 2
