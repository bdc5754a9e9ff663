"""A Runner's train, val and test: refused where FPQ cannot be, and ended."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from .._compat.versions import HAS_CUSTOM_OPS
from ..options import type_name
from ..wrappers import find_wrapper
from .config_checks import check_config
from .guards import refuse_averaging_hooks
from .model_families import unwrap

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


def refuse_other_runner(runner: Runner) -> None:
    """Refuse a Runner that loads the weights before its hooks see the model.

    Raises:
        TypeError: Naming the kind of Runner, and the one to take.
    """
    if not isinstance(runner, Runner):
        raise TypeError(
            f'FPQHook works in mmengine.runner.Runner; a '
            f'{type(runner).__name__} builds its model, optimizer and '
            "strategy in another order. Leave out runner_type, or set "
            "runner_type='Runner'")


def refuse_unfit_training(runner: Runner) -> None:
    """Refuse a training with parts that change the model under FPQ.

    Args:
        runner (Runner): The runner, before it trains.

    Raises:
        ValueError: Naming the option, the wrapper or the hook.
        ImportError: If the config's ``compile`` needs a newer torch.
    """
    _refuse_wrapper(runner)
    refuse_averaging_hooks(runner.hooks)
    if runner.cfg.get('efficient_conv_bn_eval'):
        raise ValueError(
            'efficient_conv_bn_eval: MMEngine puts another forward into the '
            'convolutions before batch norms, which passes the quantizers '
            'by. Leave the option out, for the training with FPQ')
    _refuse_unsavable_optimizer(runner)
    if runner.cfg.get('compile') and not HAS_CUSTOM_OPS:
        runner.logger.warning(
            'FPQ: compile breaks the graph at every noise below torch 2.4')


def _refuse_wrapper(runner: Runner) -> None:
    model = runner.model
    kind = type(model).__name__
    if not is_model_wrapper(model):
        return
    mro = {each.__name__ for each in type(model).__mro__}
    if 'FullyShardedDataParallel' in mro:
        raise ValueError(
            f'model_wrapper_cfg: {kind} shards the parameters before FPQ '
            'sees the layers. Use MMDistributedDataParallel, the default')
    inner = find_wrapper(unwrap(model))
    if inner is not None:
        raise ValueError(
            f'model_wrapper_cfg: {kind} wraps parts of the model '
            f'({inner[0]}) before FPQ sees the layers. Use '
            'MMDistributedDataParallel, the default')


def _refuse_unsavable_optimizer(runner: Runner) -> None:
    # MMEngine 0.10.7 saves on the first process alone, without FPQ as well.
    cfg = runner.cfg.get('optim_wrapper') or {}
    options = cfg.get('optimizer') if isinstance(cfg, dict) else None
    kind = options.get('type', '') if isinstance(options, dict) else ''
    sharded = (type_name(kind).rpartition('.')[2]
               == 'ZeroRedundancyOptimizer')
    if sharded and get_world_size() > 1 and any(
            isinstance(hook, CheckpointHook) and hook.save_optimizer
            for hook in runner.hooks):
        raise ValueError(
            'ZeroRedundancyOptimizer: each process has a part of its state, '
            'and MMEngine, which saves on the first alone, would wait for '
            'ever. Set default_hooks.checkpoint.save_optimizer=False')
