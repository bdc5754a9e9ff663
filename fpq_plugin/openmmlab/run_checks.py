"""What a Runner must not have beside FPQ, said before anything is changed."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from .._compat.versions import HAS_CUSTOM_OPS
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
