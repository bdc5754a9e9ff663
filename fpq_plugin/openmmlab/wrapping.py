"""The wrapper around a Runner's model: what it waits for, wrapped again."""

from __future__ import annotations

import copy

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..quantizers import named_quantizers


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
