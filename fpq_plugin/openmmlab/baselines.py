"""What a training is measured against: full precision, calibration alone."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner, autocast
from torch import nn

from .._compat.restoring import kept_modes, same_randomness
from ..quantizers import full_precision
from .optimizer import wrappers_of

# In shares of full precision's figure.
_WORSE, _AS_GOOD = 0.05, 0.01
# Rates that suit a training from scratch, and not from trained weights.
_FROM_SCRATCH = {'SGD': 0.05, 'Adam': 5e-4}


class Baselines:
    """The validation metric in full precision, calibrated, and trained.

    The first two are taken before the first iteration and stand in every
    checkpoint, so that a resumed run knows them.

    Attributes:
        scores (dict[str, float]): ``metric`` is its name; ``full_precision``
            and ``calibrated`` are its values. Empty: not measured.
    """

    def __init__(self) -> None:
        self.scores: dict[str, Any] = {}
        self._trained: float | None = None
        self._told = False

    def measure(self, runner: Runner, model: nn.Module) -> None:
        """Validate the calibrated model without and with its quantizers.

        Args:
            runner (Runner): The runner, before its first iteration.
            model (nn.Module): The student, calibrated and not trained.
        """
        loop = runner.val_loop
        if not all(hasattr(loop, name) for name in ('dataloader',
                                                    'evaluator')):
            runner.logger.info(
                'FPQ: the config has no validation, so what full precision '
                'and calibration alone reach is not known')
            return
        runner.logger.info('FPQ validates the model in full precision and '
                           'after calibration alone')
        with full_precision(model):
            scores = _validate(loop, model)
        metric = _main_metric(runner, scores)
        if metric is None:
            runner.logger.info('FPQ: the validation gives no number')
            return
        self.scores = dict(
            metric=metric,
            full_precision=float(scores[metric]),
            calibrated=float(_validate(loop, model)[metric]))
        runner.logger.info(f'FPQ: {self.line()}')
        if self._as_good():
            runner.logger.warning(
                'FPQ: calibration alone is as good as full precision. '
                'Training at a high rate can only lose: train at a tenth of '
                'the rate, or export the model as it is')

    def validated(self, runner: Runner, metrics: Mapping[str, Any]) -> None:
        """Take a validation of the training; warn if it is worse than none.

        Args:
            runner (Runner): The runner.
            metrics (Mapping): What the validation gave.
        """
        metric = self.scores.get('metric', '')
        if metric not in metrics:
            return
        self._trained = float(metrics[metric])
        start, best = (self.scores[k] for k in ('calibrated',
                                                'full_precision'))
        if (not self._told and self._gain(self._trained, start)
                < -_WORSE * abs(best)):
            self._told = True
            runner.logger.warning(
                f'FPQ: {self.line()}: worse than without any training. '
                f'{_ADVICE}')

    def tell_end(self, runner: Runner) -> None:
        """Log the figures at the end, with a warning if it has diverged."""
        if self._trained is None:
            return
        runner.logger.info(f'FPQ: {self.line()}')
        best = self.scores['full_precision']
        if self._gain(best, self._trained) > 0.5 * abs(best):
            runner.logger.warning(
                f'FPQ: the training has diverged. {_ADVICE}')

    def line(self) -> str:
        """The figures in a line; empty if they were not measured."""
        if not self.scores:
            return ''
        text = (f'{self.scores["metric"]}: '
                f'{self.scores["full_precision"]:.2f} in full precision, '
                f'{self.scores["calibrated"]:.2f} after calibration alone')
        if self._trained is not None:
            text += f', {self._trained:.2f} trained'
        return text

    def _gain(self, value: float, over: float) -> float:
        """By how much ``value`` is better."""
        lower = 'loss' in self.scores['metric']
        return over - value if lower else value - over

    def _as_good(self) -> bool:
        best = self.scores['full_precision']
        return (self._gain(self.scores['calibrated'], best)
                >= -_AS_GOOD * abs(best))


_ADVICE = ('Start again with a lower learning rate (optim_wrapper.optimizer.'
           'lr), or with more bits')


@torch.no_grad()
def _validate(loop: Any, model: nn.Module) -> dict:
    """One pass of a validation loop with a model, without the hooks."""
    with kept_modes(model), same_randomness():
        model.eval()
        for batch in loop.dataloader:
            with autocast(enabled=getattr(loop, 'fp16', False)):
                outputs = model.val_step(batch)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        return loop.evaluator.evaluate(len(loop.dataloader.dataset))


def _main_metric(runner: Runner, scores: Mapping[str, Any]) -> str | None:
    """The metric that CheckpointHook's ``save_best`` names, or the first."""
    numbers = [name for name, value in scores.items()
               if isinstance(value, Real)]
    wanted = [
        name for hook in runner.hooks if isinstance(hook, CheckpointHook)
        for name in hook.save_best or ()
    ]
    return next((name for name in [*wanted, *numbers] if name in numbers),
                None)


def tell_of_high_rate(runner: Runner) -> None:
    """Warn of a learning rate that is one of training from scratch.

    Args:
        runner (Runner): The runner, its optimizers built.
    """
    for each in wrappers_of(runner.optim_wrapper):
        optimizer = each.optimizer
        kind = next((name for name in _FROM_SCRATCH
                     if type(optimizer).__name__.startswith(name)), None)
        rate = max(group.get('initial_lr', group['lr'])
                   for group in optimizer.param_groups)
        if kind and rate >= _FROM_SCRATCH[kind]:
            runner.logger.warning(
                f'FPQ: {type(optimizer).__name__} has a learning rate of '
                f'{rate:g}, which is one of training from scratch. This '
                'training starts from trained weights: a tenth of it suits '
                '(optim_wrapper.optimizer.lr)')
