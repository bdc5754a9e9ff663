"""A fragment is inherited, and its hook forgotten."""

from __future__ import annotations

from functools import wraps
from typing import Any

from mmengine.runner import Runner

from .fpq_hook import FPQHook


def refuse_forgotten_hooks() -> None:
    """Let Runners refuse a config that has a fragment's ``fpq`` and no hook.

    ``default_hooks = dict(fpq=_base_.fpq)`` is a line of the user's, since
    mmengine refuses two bases with one key. Without it the model would be
    trained and tested in full precision, and nothing would say so.
    """
    original = Runner.register_hooks

    @wraps(original)
    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _refuse_forgotten_hook(self)

    Runner.register_hooks = register_hooks


def _refuse_forgotten_hook(runner: Runner) -> None:
    fragment = runner.cfg.get('fpq')
    if (isinstance(fragment, dict)
            and fragment.get('type') in ('FPQHook', FPQHook)
            and not any(isinstance(hook, FPQHook) for hook in runner.hooks)):
        raise ValueError(
            'default_hooks.fpq: missing; the config has the fpq of a fragment '
            'but no FPQHook, so nothing would be quantized. Add the line '
            'default_hooks = dict(fpq=_base_.fpq), or leave the fragment out')
