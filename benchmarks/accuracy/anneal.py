"""Of the study: lambda, or p, falls to 0 along a cosine."""

from __future__ import annotations

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from fpq_plugin import FPQHook, StochasticFeaturePerturbation


@HOOKS.register_module()
class Anneal(Hook):
    """Scales an attribute of all that have it by a cosine from 1 to 0.

    Args:
        what (str): 'loss_weight' of the distillation's losses, or 'p' of the
            perturbed layers.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def before_train(self, runner: Runner) -> None:
        """Find them and their values."""
        if self.what == 'p':
            found = [m for m in runner.model.modules()
                     if isinstance(m, StochasticFeaturePerturbation)]
        else:
            hook, = (h for h in runner.hooks if isinstance(h, FPQHook))
            found = hook.session.distiller.criteria
        self._values = [(each, getattr(each, self.what)) for each in found]

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Set the values of this iteration."""
        part = (1 + math.cos(math.pi * runner.iter / runner.max_iters)) / 2
        for each, value in self._values:
            setattr(each, self.what, value * part)
