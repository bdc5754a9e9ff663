"""A model's weights: read from a checkpoint, held against a model, loaded."""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..quantizers import named_quantizers
from .quantization import first_few, quantizer_bits


def bare_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without a data-parallel prefix.

    Raises:
        ValueError: If it holds no tensors.
    """
    state = checkpoint.get('state_dict', checkpoint)
    state = {
        re.sub(r'^module\.', '', key): value
        for key, value in state.items() if isinstance(value, Tensor)
    }
    if not state:
        raise ValueError('it holds no weights (no state_dict)')
    return state


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict without that of its quantizers."""
    own = quantizer_state(model)
    return {k: v for k, v in model.state_dict().items() if k not in own}


def complete_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, with what its own hooks would leave out.

    mmpretrain's LoRAModel keeps all but its adapters out of checkpoints.
    Where parameters or quantizers are missing under their names, every tensor
    is put back under its own; else the state dict is as the model gives it.
    """
    state = model.state_dict()
    if dropped_keys(model, state):
        for key, value in _without_hooks(model).items():
            state.setdefault(key, value)
    return state


def dropped_keys(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Keys of parameters and quantizers that the model's state lacks."""
    names = [name for name, _ in model.named_parameters(
        remove_duplicate=False)]
    return [key for key in [*names, *quantizer_state(model)]
            if key not in state]


def _without_hooks(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that no hook of a module has seen."""
    state: Any = OrderedDict()
    state._metadata = defaultdict(dict)
    for name, module in model.named_modules(remove_duplicate=False):
        module._save_to_state_dict(state, f'{name}.' if name else '', False)
    return {key: value for key, value in state.items()
            if isinstance(value, Tensor)}


def quantizer_state(model: nn.Module) -> dict[str, Tensor]:
    """The part of the model's state dict that belongs to its quantizers."""
    return {
        f'{name}.{key}': value
        for name, quantizer in named_quantizers(model, False).items()
        for key, value in quantizer.state_dict().items()
    }


def refuse_other_architecture(own: Mapping[str, Tensor],
                              given: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that do not fill a full-precision model.

    Args:
        own (Mapping[str, Tensor]): The model's :func:`float_state`.
        given (Mapping[str, Tensor]): The weights.
        what (str): Where they come from, for the message.

    Raises:
        ValueError: Naming keys that are missing or of another shape, or if
            the weights were trained with FPQ.
    """
    if quantizer_bits(given):
        raise ValueError(f'{what} was trained with FPQ: its weights are not '
                         'the full-precision ones')
    missing = [
        k for k in own
        if k not in given and not k.endswith('num_batches_tracked')
    ]
    other = [
        f'{k} {tuple(given[k].shape)} instead of {tuple(own[k].shape)}'
        for k in own if k in given and given[k].shape != own[k].shape
    ]
    if not missing and not other:
        return
    lines = [f'{what} does not fit the model:']
    extra = [k for k in given if k not in own]
    for title, keys in (('missing', missing), ('of another shape', other),
                        ('not in the model', extra)):
        if keys:
            lines.append(f'  {title}: {first_few(keys)}')
    raise ValueError('\n'.join(lines))


def load_exactly(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state that has all of the model's keys and no others.

    What the model's own loading hooks drop (Swin V2 computes its tables
    anew) may be missing then.

    Args:
        model (nn.Module): The model.
        state (Mapping[str, Tensor]): Its state.

    Raises:
        ValueError: Naming the keys that are missing or too many.
    """
    result = model.load_state_dict(dict(state), strict=False)
    missing = [k for k in result.missing_keys if k not in state]
    if missing or result.unexpected_keys:
        raise ValueError(
            'the state does not fit the model: missing '
            f'{first_few(missing) or "nothing"}; not in the model '
            f'{first_few(result.unexpected_keys) or "nothing"}')
