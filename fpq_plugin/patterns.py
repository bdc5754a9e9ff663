"""Layer-name patterns of ``skip`` and ``overrides``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` names the layer or a module that holds it.

    ``*`` stands for any characters, dots included: ``backbone.layer1`` and
    ``backbone.layer1.*`` both match ``backbone.layer1.0.conv1``.
    """
    parts = name.split('.')
    return any(
        fnmatchcase('.'.join(parts[:end]), pattern)
        for end in range(1,
                         len(parts) + 1))


def refuse_no_patterns(key: str, patterns: Any) -> None:
    """Refuse what is not a list of patterns.

    Raises:
        TypeError: Naming the key.
    """
    if isinstance(patterns, str) or not all(
            isinstance(p, str) for p in patterns):
        raise TypeError(f'{key}: must be a list of patterns, got '
                        f'{patterns!r}')


def refuse_unmatched(key: str, patterns: Iterable[str],
                     names: list[str]) -> None:
    """Refuse a pattern that matches no layer.

    Args:
        key (str): The option's name in the config, for the message.
        patterns (Iterable[str]): The patterns.
        names (list[str]): Names of the layers that can be quantized.

    Raises:
        ValueError: Naming the pattern and the nearest layer names.
    """
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            raise ValueError(
                f'{key}: the pattern {pattern!r} matches no layer that can be '
                f'quantized. Nearest names: {", ".join(near or names[:3])}.')
