"""The losses since they were last taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

UNREAD = 100
"""After so many forwards whose losses nobody took a warning is due."""


class Tally:
    """The losses of the training forwards since they were last taken.

    Args:
        warn (Callable): Told once if they are never taken.
    """

    def __init__(self, warn: Callable[[str], Any]) -> None:
        self._warn = warn
        self._losses: dict[tuple[str, str], Tensor] = {}
        self._taken = self._stale = self._any = False
        self._unread = 0

    def start(self) -> None:
        """A training forward begins."""
        if self._taken:
            self._losses = {}
            self._unread = 0
        self._taken = self._stale = self._any = False
        self._unread += 1
        if self._unread == UNREAD:
            self._warn(
                f'{UNREAD} training forwards were distilled and loss() was '
                'not called: their graphs fill the memory. Call detach() to '
                'end the distillation')

    def pass_by(self) -> None:
        """A forward is not compared: what was taken is of the past."""
        self._stale = self._taken

    def add(self, label: str, name: str, loss: Tensor) -> None:
        """Count the loss of one call of one layer."""
        key = label, name
        past = self._losses.get(key)
        self._losses[key] = loss if past is None else past + loss
        self._any = True

    def take(self) -> dict[tuple[str, str], Tensor]:
        """The losses by label and layer; until the next forward again.

        Raises:
            RuntimeError: If there are none that are new.
        """
        if not self._losses:
            raise RuntimeError('no layer was distilled yet: was the student '
                               'called in training mode?')
        if self._stale:
            raise RuntimeError(
                'no layer was distilled since the loss was last taken: the '
                'student was called in eval mode, or without gradient')
        self._taken = True
        return self._losses

    def any(self) -> bool:
        """Whether the last training forward compared any layer."""
        return self._any

    def by_layer(self) -> dict[str, Tensor]:
        """The losses by layer, detached, also those already taken."""
        parts: dict[str, Tensor] = {}
        for (_, name), loss in self._losses.items():
            parts[name] = parts.get(name, 0) + loss.detach()
        return parts

    def clear(self) -> None:
        """Let all losses go."""
        self._losses = {}
