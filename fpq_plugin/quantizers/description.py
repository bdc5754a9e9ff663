"""What a fake quantizer's stored numbers mean, in plain data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from ..options import known_options

# Options of a constructor that only calibration, training or a shape knows.
_NOT_OF_MEANING = frozenset([
    'averaging_constant', 'bits', 'ch_axis', 'device', 'factory_kwargs',
    'num_channels', 'observer', 'per_channel', 'signed', 'symmetric',
    'weight_decay'
])
# What quantizers did before they told it.
_BEFORE = dict(narrow_range=False)
KEY = 'fpq'
"""Where a state dict's metadata has a quantizer's description."""


def describe(quantizer: nn.Module) -> dict[str, Any]:
    """Type, bits and whatever else changes what stored numbers mean.

    Of a quantizer of the user's own, the options of its constructor that it
    keeps as attributes are told as well.

    Args:
        quantizer (nn.Module): A fake quantizer.

    Returns:
        dict: Plain data, which a checkpoint may hold.
    """
    kind: Any = type(quantizer)
    found = dict(type=kind.__name__, bits=quantizer.num_bits,
                 per_channel=quantizer.is_per_channel)
    if quantizer.is_per_channel:
        found['ch_axis'] = quantizer.ch_axis
    for name in ('symmetric', 'signed'):
        if isinstance(getattr(quantizer, name, None), bool):
            found[name] = getattr(quantizer, name)
    for name in _own_options(kind):
        if name in vars(quantizer):
            found[name] = _plain(vars(quantizer)[name])
    return found


@cache
def _own_options(kind: type) -> list[str]:
    """What a constructor takes besides what every quantizer's may."""
    return [name for name in known_options(kind)
            if name not in _NOT_OF_MEANING]


def differences(stored: Mapping[str, Any],
                own: Mapping[str, Any]) -> tuple[str, str] | None:
    """How two descriptions differ, in words; None if they do not.

    What only one of them tells, as of another release, counts not.

    Args:
        stored (Mapping): What a checkpoint says.
        own (Mapping): What a model has.

    Returns:
        tuple | None: What to say of each.
    """
    stored = {**_BEFORE, **stored} if 'type' in stored else stored
    other = [key for key in own if key in stored and stored[key] != own[key]]
    if not other:
        return None
    return _words(stored, other), _words(own, other)


def _words(description: Mapping[str, Any], keys: list[str]) -> str:
    said = [_word(key, description[key]) for key in keys if key != 'type']
    if 'type' not in keys:
        return ', '.join(said)
    more = f' ({", ".join(said)})' if said else ''
    return f'{description["type"]}{more}'


def _word(key: str, value: Any) -> str:
    if key == 'bits':
        return f'{value} bits'
    if key == 'per_channel':
        return 'per channel' if value else 'per tensor'
    if key == 'symmetric':
        return 'symmetric' if value else 'asymmetric'
    if key == 'signed':
        return 'signed' if value else 'unsigned'
    return f'{key}={value!r}'


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, type):
        return value.__name__
    return type(value).__name__
