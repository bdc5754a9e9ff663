"""A config's FPQHook: found, forgotten, or with options nobody reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..state import first_few
from .inference import is_fpq_hook


def refuse_forgotten_hooks() -> None:
    """Let Runners refuse a config that has a fragment's ``fpq`` and no hook.

    ``default_hooks = dict(fpq=_base_.fpq)`` is a line of the user's, since
    mmengine refuses two bases with one key. Without it the model would be
    trained and tested in full precision, and nothing would say so.
    """
    for name in ('train', 'val', 'test'):
        setattr(Runner, name, _after_a_look(getattr(Runner, name)))


def _after_a_look(run: Callable) -> Callable:

    @wraps(run)
    def look_and_run(self: Runner, *args: Any, **kwargs: Any) -> Any:
        from .fpq_hook import FPQHook
        if (is_fpq_hook(self.cfg.get('fpq'))
                and not any(isinstance(hook, FPQHook) for hook in self.hooks)):
            raise ValueError(
                'default_hooks.fpq: missing; the config has the fpq of a '
                'fragment but no FPQHook, so nothing would be quantized. Add '
                'the line default_hooks = dict(fpq=_base_.fpq); for a run in '
                'full precision leave the fragment out, or set fpq = None')
        return run(self, *args, **kwargs)

    return look_and_run


def warn_of_unread_options(runner: Runner, hook: type[Hook]) -> None:
    """Tell of a top-level ``fpq`` that says otherwise than the hook's.

    In ``default_hooks = dict(fpq=_base_.fpq)`` that is the base's value,
    whatever the file itself assigns to ``fpq``. What the hook's own options
    change from the default is meant so.

    Args:
        runner (Runner): The runner with the config.
        hook (type): The hook's class, whose constructor has the defaults.
    """
    written = runner.cfg.get('fpq')
    used = (runner.cfg.get('default_hooks') or {}).get('fpq')
    if not isinstance(written, dict) or not isinstance(used, dict):
        return
    unread = []
    for key, parameter in inspect.signature(hook).parameters.items():
        default = parameter.default
        value, other = (
            each.get(key, default) or None for each in (written, used))
        if value != other and other == (default or None):
            unread.append(key)
    if unread:
        runner.logger.warning(
            f'FPQ: the top-level fpq of the config has another '
            f'{first_few(unread)} than default_hooks.fpq, and is not '
            'read: put options into default_hooks.fpq')
