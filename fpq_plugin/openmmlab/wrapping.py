"""What wraps a Runner's model, or a forward in it: put on anew, taken off."""

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
