"""A Runner's optimizer and schedulers, built again once the scales exist."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn

from ..param_groups import has_groups_inside, separated_groups, set_groups
from ..quantizers import named_quantizers


def wrappers_of(optim_wrapper: OptimWrapper) -> list[OptimWrapper]:
    """The wrappers with an optimizer each, of an OptimWrapperDict as well."""
    if isinstance(optim_wrapper, OptimWrapperDict):
        return list(optim_wrapper.values())
    return [optim_wrapper]


def require_optim_config(runner: Runner) -> None:
    """Refuse a Runner that was given an optimizer and no config of one.

    Raises:
        ValueError: Naming the way out.
    """
    if runner.cfg.get('optim_wrapper') is None:
        raise ValueError(
            'FPQ rebuilds the optimizer from the config, and this Runner '
            'has none: build it with Runner.from_cfg(cfg), or pass '
            'cfg=dict(optim_wrapper=..., param_scheduler=...) to it')


def rebuild_optimizer(runner: Runner, model: nn.Module,
                      scale_lr_mult: float) -> None:
    """Build a Runner's optimizer and schedulers anew, the scales apart.

    Args:
        runner (Runner): The runner, whose config has the optimizer.
        model (nn.Module): Its converted model, without a wrapper.
        scale_lr_mult (float): Factor on the scales' learning rate.

    Raises:
        ValueError: If a scale has no place in the optimizer.
    """
    cfg = copy.deepcopy(runner.cfg.optim_wrapper)
    runner.optim_wrapper = runner.build_optim_wrapper(cfg)
    runner.param_schedulers = None
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    wrappers = wrappers_of(runner.optim_wrapper)
    wanted = separated_groups(
        model, [w.optimizer for w in wrappers], scale_lr_mult)
    for wrapper, groups in zip(wrappers, wanted):
        if has_groups_inside(wrapper.optimizer):
            wrapper.optimizer = _made_of(groups, wrapper.optimizer,
                                         runner.cfg.optim_wrapper)
        else:
            set_groups(wrapper.optimizer, groups)
    schedulers = copy.deepcopy(runner.cfg.get('param_scheduler'))
    if schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(schedulers)


def count_micro_batches(optim_wrapper: OptimWrapper,
                        model: nn.Module) -> None:
    """Tell the quantizers of gradient accumulation (LSQ's n)."""
    number = max(w._accumulative_counts for w in wrappers_of(optim_wrapper))
    for quantizer in named_quantizers(model).values():
        quantizer.micro_batches = number


def _made_of(groups: list[dict], old: Any, cfg: Any) -> Any:
    """Another optimizer like ``old``, as the config says, of these groups."""
    options = cfg.get('optimizer') if isinstance(cfg, Mapping) else None
    new = None
    if isinstance(options, Mapping) and 'type' in options:
        new = OPTIMIZERS.build({**options, 'params': groups})
    if type(new) is not type(old):
        raise ValueError(
            f'optim_wrapper: {type(old).__name__} does not let its groups be '
            'changed, and optim_wrapper.optimizer is not one: FPQ cannot '
            'give the scales a group of their own. Take another optimizer, '
            'or the default optim_wrapper.constructor')
    return new
