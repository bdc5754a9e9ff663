"""Reading options from configs: names, numbers, patterns; plain errors."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from mmengine.registry import MODELS, Registry
from torch import nn

FLOAT_BITS = 32
"""As ``bits``: not quantized."""


def known_options(cls: type) -> list[str]:
    """Names that ``cls``'s constructor takes, base classes included."""
    names: list[str] = []
    for base in cls.__mro__:
        if '__init__' not in vars(base) or base is nn.Module:
            continue
        made_by = inspect.signature(vars(base)['__init__'])
        parameters = made_by.parameters.values()
        names += [
            p.name for p in parameters
            if p.name != 'self'
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return names


def refuse_unknown(key: str, given: Any, known: list[str]) -> None:
    """Refuse names in ``given`` that are not in ``known``.

    Raises:
        ValueError: Naming the key, the nearest known name and all of them.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            raise ValueError(f'{key}: unknown option {name!r}.{hint} '
                             f'Known options: {", ".join(sorted(known))}.')


def type_name(kind: Any) -> str:
    """The name of a config's ``type``, which may be a class."""
    return kind if isinstance(kind, str) else getattr(kind, '__name__', '')


def merge(base: Mapping[str, Any] | None, given: Any) -> Any:
    """A component's config over another one, if they are of one type.

    Args:
        base (Mapping, optional): The config that holds where ``given`` says
            nothing.
        given (Mapping, optional): The config that counts; None: off.

    Returns:
        dict | None: ``given``, and of ``base`` what it leaves open.
    """
    if not isinstance(given, Mapping):
        return given
    if base is None or type_name(given.get('type', base['type'])) != (
            type_name(base['type'])):
        return dict(given)
    return {**base, **given, 'type': base['type']}


def override(base: Mapping[str, Any] | None, given: Any) -> Any:
    """The same for an override, which keeps the bits whatever its type.

    Args:
        base (Mapping, optional): The layer's config without the override.
        given (Mapping, optional): The override; None: off.

    Returns:
        dict | None: What holds for the layer.
    """
    merged = merge(base, given)
    if merged and base and 'bits' in base:
        merged.setdefault('bits', base['bits'])
    return merged


def resolve(key: str,
            cfg: Mapping[str, Any] | None,
            default_type: str,
            registry: Registry = MODELS,
            kind: type = object) -> dict | None:
    """Check a component's config and return it as a plain dict.

    Args:
        key (str): The option's name in the config, for messages.
        cfg (dict, optional): Config with an optional ``type``.
        default_type (str): The type if ``cfg`` names none.
        registry (Registry): Where types are found by name. Defaults to
            MODELS.
        kind (type): What the type must be a subclass of. Defaults to
            object.

    Returns:
        dict | None: The config with its ``type``; None if ``cfg`` is None or
        ``bits`` is 32, which both mean off.

    Raises:
        TypeError: If ``cfg`` is neither a dict nor None.
        ValueError: If the type or an option is unknown, or the type is of
            another kind.
    """
    if cfg is None:
        return None
    if not isinstance(cfg, Mapping):
        raise TypeError(f'{key}: must be a dict or None, got {cfg!r}')
    cfg = {'type': default_type, **cfg}
    cls = _find(cfg['type'], registry)
    if cls is None:
        raise ValueError(
            f'{key}.type: {cfg["type"]!r} is not registered in '
            f'{_names(registry)}{_nearest(cfg["type"], registry, kind)}; '
            'check its spelling, and that custom_imports imports its module')
    if not isinstance(cls, type) or not issubclass(cls, kind):
        raise ValueError(
            f'{key}.type: {cfg["type"]!r} is no class of kind '
            f'{kind.__name__}; the default type is {default_type!r}')
    if registry.get(cls.__name__) is cls:
        cfg['type'] = cls.__name__
    refuse_unknown(key, cfg, ['type', *known_options(cls)])
    return None if cfg.get('bits') == FLOAT_BITS else cfg


def build(key: str,
          cfg: dict,
          registry: Registry = MODELS,
          **defaults: Any) -> nn.Module:
    """Build a component; its errors are given the option's full name.

    Args:
        key (str): The option's name in the config, for messages.
        cfg (dict): Config with ``type``.
        registry (Registry): Where types are found by name. Defaults to
            MODELS.
        **defaults: Arguments that ``cfg`` may override.

    Returns:
        nn.Module: The built component.

    Raises:
        ValueError: If the component refuses its arguments.
        ImportError: If what the component needs is missing.
    """
    cls = _find(cfg['type'], registry)
    known = known_options(cls)
    arguments = {k: v for k, v in defaults.items() if k in known}
    arguments.update((k, v) for k, v in cfg.items() if k != 'type')
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        option, _, rest = str(error).partition(' ')
        if option.rstrip(':') in known:
            raise ValueError(f'{key}.{option.rstrip(":")}: {rest}') from error
        raise ValueError(f'{key}: {error}') from error
    except ImportError as error:
        raise ImportError(f'{key}: {error}') from error


def _find(kind: str | type, registry: Registry) -> Any:
    return registry.get(kind) if isinstance(kind, str) else kind


def _nearest(name: Any, registry: Registry, kind: type) -> str:
    """A hint at the registered type of the right kind, nearest by name."""
    known = [each for tried in (registry, MODELS)
             for each, cls in tried.module_dict.items()
             if isinstance(cls, type) and issubclass(cls, kind)]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f' (did you mean {near[0]!r}?)' if near else ''


def _names(registry: Registry) -> str:
    """'MODELS', with the child registry that was asked first, if any."""
    if registry is MODELS:
        return 'MODELS'
    return f'{registry.name.upper()} or MODELS'


def is_number(value: Any, low: float, high: float = math.inf) -> bool:
    """Whether ``value`` is a finite number of ``low`` to ``high``."""
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and math.isfinite(value) and low <= value <= high)


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
                f'quantized.{_hint(pattern, names)} Nearest names: '
                f'{", ".join(near or names[:3])}.')


def _hint(pattern: str, names: list[str]) -> str:
    """What the pattern was probably meant to be."""
    inside = f'*{pattern}*'
    if any(fnmatchcase(name, inside) for name in names):
        return f' Did you mean {inside!r}?'
    if re.search(r'\.[*+]|[\^$\\|()]', pattern):
        return (" Patterns are names with '*' for any characters, not "
                'regular expressions.')
    return ''
