"""How a checkpoint's quantizers were made, of older releases too."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..convert import to_float
from ..quantizers import describe, named_quantizers
from ..recipe import Recipe
from ..state import (
    complete_state,
    dropped_keys,
    first_few,
    stored_quantizers,
)
from .config_checks import assigned, is_fpq_hook
from .model_families import convert_mm_model


def quantizers_of(checkpoint: Mapping[str, Any],
                  model: nn.Module) -> dict[str, dict]:
    """The descriptions of a checkpoint's quantizers, by name.

    Release 0.1.0 wrote none. Its checkpoints hold their config, as text, and
    what that would make of the model is described instead.

    Args:
        checkpoint (Mapping): The checkpoint.
        model (nn.Module): The model to be filled, converted; it stays as it
            is.

    Returns:
        dict: Empty if nothing tells.
    """
    found = stored_quantizers(checkpoint)
    options = None if found else _options_of(checkpoint)
    if options is None:
        return found
    twin = to_float(copy.deepcopy(model))
    try:
        convert_mm_model(twin, Recipe.of(options))
    except (TypeError, ValueError, ImportError, AttributeError):
        return {}  # another release's options; keys and shapes still tell
    return {name: describe(quantizer)
            for name, quantizer in named_quantizers(twin, False).items()}


def complete(state: MutableMapping[str, Tensor], model: nn.Module) -> None:
    """Put into a state what the model's own hooks keep out of it.

    Args:
        state (MutableMapping): The state dict of a checkpoint to be saved.
        model (nn.Module): The model, without a wrapper.
    """
    if dropped_keys(model, state):
        for key, value in complete_state(model).items():
            state.setdefault(key, value.cpu())


def refuse_averaged_part(runner: Runner, model: nn.Module) -> None:
    """Refuse an EMA that would average a part of the model's state only.

    Args:
        runner (Runner): The runner, before it trains.
        model (nn.Module): Its model, without a wrapper.

    Raises:
        ValueError: Naming the hook and the keys.
    """
    dropped = dropped_keys(model, model.state_dict())
    if dropped and any(isinstance(hook, EMAHook) for hook in runner.hooks):
        raise ValueError(
            f'EMAHook: {type(model).__name__} keeps {first_few(dropped, 2)} '
            'out of its state_dict, so a checkpoint would mix averaged '
            'weights with steps that are not. Leave the EMAHook out')


def _options_of(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The hook's options in the text of the config in a checkpoint."""
    text = (checkpoint.get('meta') or {}).get('cfg')
    if not isinstance(text, str):
        return None
    hooks: list[Any] = []
    for name in ('default_hooks', 'custom_hooks'):
        for value in assigned(text, name) or []:
            hooks += value.values() if isinstance(value, dict) else value
    for options in hooks:
        if is_fpq_hook(options):
            return {key: value for key, value in options.items()
                    if key not in ('type', 'priority')}
    return None
