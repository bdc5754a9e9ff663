"""What a training is measured against: full precision, calibration alone."""

from __future__ import annotations

from collections import Counter
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
_ADVICE = ('Start again with a lower learning rate (optim_wrapper.optimizer.'
           'lr), or with more bits')


class Baselines:
    """The validation metric in full precision, calibrated, and trained.

    The first two are taken before the first iteration and stand in every
    checkpoint, so that a resumed run knows them.

    Attributes:
        scores (dict): ``metric`` is its name, ``rule`` is 'greater', 'less'
            or None where it is not known which is better;
            ``full_precision`` and ``calibrated`` are its values, the latter
            None if that validation did not give it. Empty: not measured.
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
        why = _not_measured(loop, model)
        if why:
            runner.logger.info(f'FPQ: {why}, so what full precision and '
                               'calibration alone reach is not known')
            return
        runner.logger.info('FPQ validates the model in full precision and '
                           'after calibration alone')
        with full_precision(model):
            scores = _numbers(_validate(loop, model))
        metric, rule = _main_metric(runner, list(scores))
        if metric is None:
            runner.logger.info('FPQ: the validation gives no number')
            return
        self.scores = dict(
            metric=metric, rule=rule, full_precision=scores[metric],
            calibrated=_numbers(_validate(loop, model)).get(metric))
        runner.logger.info(f'FPQ: {self.line()}')
        if self._loses_at_most('calibrated', _AS_GOOD):
            runner.logger.warning(
                'FPQ: calibration alone is as good as full precision. '
                'Training at a high rate can only lose: a tenth of full '
                "precision's, or less, for an epoch or two is enough")

    def validated(self, runner: Runner, metrics: Mapping[str, Any]) -> None:
        """Take a validation of the training; warn if it is worse than none.

        Args:
            runner (Runner): The runner.
            metrics (Mapping): What the validation gave.
        """
        numbers = _numbers(metrics)
        if self.scores.get('metric') not in numbers:
            return
        self._trained = numbers[self.scores['metric']]
        start = self.scores['calibrated']
        if self._told or start is None or not self.scores.get('rule'):
            return
        most = _WORSE * abs(self.scores['full_precision'])
        if not self._gain(self._trained, start) >= -most:  # NaN, too
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
        if self.scores.get('rule') and not (
                self._gain(best, self._trained) <= 0.5 * abs(best)):
            runner.logger.warning(
                f'FPQ: the training has diverged. {_ADVICE}')

    def line(self) -> str:
        """The figures in a line; empty if they were not measured."""
        if not self.scores:
            return ''
        calibrated = self.scores['calibrated']
        text = (f'{self.scores["metric"]}: '
                f'{self.scores["full_precision"]:.4g} in full precision, '
                + ('no value' if calibrated is None else f'{calibrated:.4g}')
                + ' after calibration alone')
        if self._trained is not None:
            text += f', {self._trained:.4g} trained'
        return text

    def _gain(self, value: float, over: float) -> float:
        """By how much ``value`` is better."""
        return over - value if self.scores['rule'] == 'less' else value - over

    def _loses_at_most(self, which: str, share: float) -> bool:
        value, best = self.scores[which], self.scores['full_precision']
        return (value is not None and bool(self.scores['rule'])
                and self._gain(value, best) >= -share * abs(best))


def _not_measured(loop: Any, model: nn.Module) -> str:
    """Why a model is not validated here; empty: it is."""
    if loop is None:
        return 'the config has no validation'
    if not all(hasattr(loop, name) for name in ('dataloader', 'evaluator')):
        return f'validation by {type(loop).__name__} is not taken here'
    if hasattr(model, 'prepare_prototype'):
        return 'the model prepares prototypes before a validation'
    return ''


@torch.no_grad()
def _validate(loop: Any, model: nn.Module) -> dict:
    """One pass of a validation loop with a model, without the hooks."""
    with kept_modes(model), same_randomness():
        model.eval()
        for batch in loop.dataloader:
            with autocast(enabled=getattr(loop, 'fp16', False)):
                outputs = model.val_step(batch)
            # A model may append its losses, which MMEngine takes off.
            if list(getattr(outputs[-1], 'keys', list)()) == ['loss']:
                outputs = outputs[:-1]
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        return loop.evaluator.evaluate(len(loop.dataloader.dataset))


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers, or tensors of one element."""
    return {
        name: float(value) for name, value in scores.items()
        if isinstance(value, Real)
        or isinstance(value, torch.Tensor) and value.numel() == 1
    }


def _main_metric(runner: Runner, names: list[str]
                 ) -> tuple[str | None, str | None]:
    """The metric that ``save_best`` names, or the first; which is better."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    for hook in hooks:
        for name, rule in zip(hook.save_best or (),
                              getattr(hook, 'rules', ())):
            if name in names:
                return name, rule
    metric = next(iter(names), None)
    for rule, keys in (('less', CheckpointHook._default_less_keys),
                       ('greater', CheckpointHook._default_greater_keys)):
        if metric and any(key.lower() in metric.lower() for key in keys):
            return metric, rule
    return metric, None


def tell_of_high_rate(runner: Runner) -> None:
    """Warn of a learning rate that is one of training from scratch.

    Args:
        runner (Runner): The runner, its optimizers built.
    """
    for each in wrappers_of(runner.optim_wrapper):
        optimizer = each.optimizer
        kind = next((name for name in _FROM_SCRATCH
                     if type(optimizer).__name__.startswith(name)), None)
        # Some layers, or the steps, may have another rate than most.
        trained: Counter[float] = Counter()
        for group in optimizer.param_groups:
            trained[group.get('initial_lr', group['lr'])] += sum(
                parameter.numel() for parameter in group['params'])
        rate, _ = trained.most_common(1)[0]
        if kind and rate >= _FROM_SCRATCH[kind]:
            runner.logger.warning(
                f'FPQ: {type(optimizer).__name__} has a learning rate of '
                f'{rate:g}, which is one of training from scratch. This '
                'training starts from trained weights: a tenth of it suits '
                '(optim_wrapper.optimizer.lr)')
