"""A config's FPQHook: found, forgotten, or with options nobody reads."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from mmengine import Config
from mmengine.runner import Runner

from ..options import type_name
from ..recipe import PRESETS, Recipe
from ..state import first_few


def recipe_of(cfg: Config) -> Recipe | None:
    """The recipe of a config's FPQHook, None if it has none.

    Raises:
        ValueError: If an option is wrong, as :class:`Recipe`.
    """
    hooks = list((cfg.get('default_hooks') or {}).values())
    hooks += cfg.get('custom_hooks') or []
    found = next(filter(is_fpq_hook, hooks), None)
    if found is None:
        return None
    return Recipe.of({
        key: value for key, value in found.items()
        if key not in ('type', 'priority')
    })


def is_fpq_hook(options: Any) -> bool:
    """Whether these are a config's options of an FPQHook, however named."""
    if not isinstance(options, dict):
        return False
    return type_name(options.get('type', '')).rpartition('.')[2] == 'FPQHook'


def refuse_forgotten_hook(runner: Runner) -> None:
    """Refuse a config that has a fragment's ``fpq`` and no hook.

    ``default_hooks = dict(fpq=_base_.fpq)`` is a line of the user's, since
    mmengine refuses two bases with one key. Without it the model would be
    trained and tested in full precision, and nothing would say so.

    Args:
        runner (Runner): The runner, before it trains or tests.

    Raises:
        ValueError: Naming the line to add.
    """
    if is_fpq_hook(runner.cfg.get('fpq')) and not any(
            type(hook).__name__ == 'FPQHook' for hook in runner.hooks):
        raise ValueError(
            'default_hooks.fpq: missing; the config has the fpq of a '
            'fragment but no FPQHook, so nothing would be quantized. Add '
            'the line default_hooks = dict(fpq=_base_.fpq); for a run in '
            'full precision leave the fragment out, or set fpq = None')


def warn_of_unread_options(runner: Runner) -> None:
    """Tell of a top-level ``fpq`` that says otherwise than the hook's.

    In ``default_hooks = dict(fpq=_base_.fpq)`` that is the base's value,
    whatever the file itself assigns to ``fpq``. What the hook's own options
    change from the default is meant so.

    Args:
        runner (Runner): The runner with the config.
    """
    written = runner.cfg.get('fpq')
    used = (runner.cfg.get('default_hooks') or {}).get('fpq')
    if not isinstance(written, dict) or not isinstance(used, dict):
        return
    preset = PRESETS.get(used.get('preset', 'paper'), {})
    unread = []
    for option in fields(Recipe):
        made: Any = option.default_factory
        default = option.default if made is MISSING else made()
        default = preset.get(option.name, default)
        value, other = (
            each.get(option.name, default) or None
            for each in (written, used))
        if value != other and other == (default or None):
            unread.append(option.name)
    if unread:
        runner.logger.warning(
            f'FPQ: the top-level fpq of the config has another '
            f'{first_few(unread)} than default_hooks.fpq, and is not '
            'read: put options into default_hooks.fpq')
