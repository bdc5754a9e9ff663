"""What a Runner built on the model, built again: optimizer, wrappers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn

from ..param_groups import has_groups_inside, separated_groups, set_groups
from ..quantizers import Quantizer, named_quantizers


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
    with _each_quantizer_once(model):
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


@contextmanager
def _each_quantizer_once(model: nn.Module) -> Iterator[None]:
    """Inside, a quantizer that several layers share is the first one's.

    With ``paramwise_cfg`` MMEngine walks from module to module, and would put
    its step into a group for each of them, which no optimizer takes.
    """
    seen: set[nn.Module] = set()
    hidden = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Quantizer) and child in seen:
                hidden.append((module._modules, name, child))
                module._modules[name] = None
            seen.add(child)
    try:
        yield
    finally:
        for modules, name, child in hidden:
            modules[name] = child


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


def wrap_again(runner: Runner) -> None:
    """Wrap the Runner's model anew, if it is wrapped.

    The old wrapper's reducer knows nothing of parameters that are new, and
    waits for those that are frozen now.
    """
    old = runner.model
    if not is_model_wrapper(old):
        return
    inner = old
    while is_model_wrapper(inner):
        inner = inner.module
    runner.model = inner
    runner.model = runner.wrap_model(
        copy.deepcopy(runner.cfg.get('model_wrapper_cfg')), inner)
    if 'train_step' in vars(old):  # the Runner's option compile
        runner._maybe_compile('train_step')


def freeze_idle(model: nn.Module) -> bool:
    """Freeze the parameters of quantizers that no forward reaches.

    Args:
        model (nn.Module): A calibrated model.

    Returns:
        bool: Whether any was not frozen before.
    """
    idle = [
        parameter for quantizer in named_quantizers(model).values()
        if quantizer.is_idle() for parameter in quantizer.parameters()
        if parameter.requires_grad
    ]
    for parameter in idle:
        parameter.requires_grad_(False)
    return bool(idle)


def undo_checkpointing(runner: Runner, model: nn.Module) -> None:
    """Take off what an earlier training's ``activation_checkpointing`` did.

    MMEngine would put it on once more, and a copy of the model would run the
    model itself inside: the forward is bound to it.
    """
    names = runner.cfg.get('activation_checkpointing') or ()
    for name in [names] if isinstance(names, str) else names:
        own = vars(model.get_submodule(name))
        while hasattr(own.get('forward'), '__wrapped__'):
            del own['forward']
