"""A fragment is inherited, and its hook forgotten."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from mmengine.runner import Runner

from ..inference import is_fpq_hook
from .fpq_hook import FPQHook


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
        if (is_fpq_hook(self.cfg.get('fpq'))
                and not any(isinstance(hook, FPQHook) for hook in self.hooks)):
            raise ValueError(
                'default_hooks.fpq: missing; the config has the fpq of a '
                'fragment but no FPQHook, so nothing would be quantized. Add '
                'the line default_hooks = dict(fpq=_base_.fpq); for a run in '
                'full precision leave the fragment out, or set fpq = None')
        return run(self, *args, **kwargs)

    return look_and_run
