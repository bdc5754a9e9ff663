"""What a state dict says of quantization, held against a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .layers import quantized_layers
from .quantizers import named_quantizers


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


def quantizer_bits(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Bits of each quantizer in a state dict, by the quantizer's name."""
    return {
        key.removesuffix('.bits'): int(value)
        for key, value in state.items()
        if key.endswith('.bits')
        and f'{key.removesuffix("bits")}initialized' in state
    }


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict without that of its quantizers."""
    own = quantizer_state(model)
    return {k: v for k, v in model.state_dict().items() if k not in own}


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


def first_few(names: list[str], most: int = 5) -> str:
    """The first of ``names``, and how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def refuse_other_quantization(model: nn.Module, state: Mapping[str, Tensor],
                              what: str, way_out: str) -> None:
    """Refuse a state that is not of ``model``'s quantization.

    Args:
        model (nn.Module): A converted model.
        state (Mapping[str, Tensor]): The state to be loaded into it.
        what (str): Where it comes from, for the message.
        way_out (str): What to do, for the message.

    Raises:
        ValueError: If quantizers are missing, uninitialised, too many, or of
            other bits.
    """
    given = quantizer_bits(state)
    own = {
        name: quantizer.num_bits
        for name, quantizer in named_quantizers(model, False).items()
    }
    if not given:
        raise ValueError(f'{what} is of a full-precision model: it has no '
                         f'scales. {way_out}')
    absent = [
        name for name, layer in quantized_layers(model).items()
        if 'weight' in layer._parameters and f'{name}.weight' not in state
    ]
    if absent:
        raise ValueError(f'{what} is of another model: it has no '
                         f'{first_few(absent)}. {way_out}')
    other = [
        f'{name}: {_bits(given, name)} in the checkpoint, '
        f'{_bits(own, name)} in the config' for name in {**own, **given}
        if given.get(name) != own.get(name)
    ]
    if other:
        raise ValueError(f'{what} was quantized otherwise: '
                         f'{first_few(other)}. {way_out}')
    empty = [name for name in own if not int(state[f'{name}.initialized'])]
    if empty:
        raise ValueError(f'{what} has no scales yet for '
                         f'{first_few(empty)}. {way_out}')


def _bits(quantizers: Mapping[str, int], name: str) -> str:
    return f'{quantizers[name]} bits' if name in quantizers else 'float'
