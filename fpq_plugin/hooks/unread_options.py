"""Options that a config gives where nobody reads them."""

from __future__ import annotations

import inspect

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..state import first_few


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
