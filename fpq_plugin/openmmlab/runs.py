"""A Runner's train, val and test, from before they begin to their end."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from .config_checks import check_config

_running: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


class RunAware(Hook):
    """A hook that is told of the beginning and the end of a run.

    MMEngine calls no hook before it builds the optimizer, nor at an error.
    """

    def check_run(self, runner: Any, verb: str) -> None:
        """Refuse a run, before anything is changed.

        Args:
            runner (Runner): The runner, of any kind.
            verb (str): 'train', 'val' or 'test'.
        """

    def close(self) -> None:
        """End what a training attached, however it ended."""


def before_run(runner: Any, verb: str) -> None:
    """Look at a Runner that is about to train, validate or test."""
    check_config(runner)
    for hook in runner.hooks:
        if isinstance(hook, RunAware):
            hook.check_run(runner, verb)
    _running.setdefault(runner, []).append(verb)


def after_run(runner: Any, verb: str) -> None:
    """End the training of every hook, after it or after an error."""
    if _running.get(runner):
        _running[runner].pop()
    # One that a hook starts in the midst of a training does not end it.
    if 'train' in _running.get(runner, ()):
        return
    for hook in runner.hooks:
        if isinstance(hook, RunAware):
            hook.close()


def is_training(runner: Runner) -> bool:
    """Whether ``runner.train()`` has begun, and has built the optimizer."""
    verbs = _running.get(runner)
    return (not verbs or verbs[-1] == 'train') and isinstance(
        runner.optim_wrapper, OptimWrapper)
