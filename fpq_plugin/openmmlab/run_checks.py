"""What a Runner must not have beside FPQ, said before anything is changed."""

from __future__ import annotations

from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from .._compat.versions import HAS_CUSTOM_OPS
from ..options import type_name
from ..wrappers import find_wrapper
from .averages import refuse_averaging_hooks
from .model_families import unwrap


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
