"""What a checkpoint says of its quantizers, held against a model's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..layers import quantized_layers
from ..quantizers import KEY, describe, differences, named_quantizers


def first_few(names: list[str], most: int = 5, between: str = ', ') -> str:
    """The first of ``names``, and how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return between.join(names[:most]) + more


def quantizer_bits(state: Mapping[str, Any]) -> dict[str, int]:
    """Bits of each quantizer in a state dict, by the quantizer's name."""
    return {
        key.removesuffix('.bits'): int(value)
        for key, value in state.items()
        if key.endswith('.bits')
        and f'{key.removesuffix("bits")}initialized' in state
    }


def stored_quantizers(checkpoint: Mapping[str, Any]) -> dict[str, dict]:
    """The descriptions of its quantizers in a checkpoint, by name.

    They are in ``meta``, or else in the metadata of the state dict. Release
    0.1.0 wrote neither: the result is empty then.
    """
    meta = (checkpoint.get('meta') or {}).get('fpq') or {}
    state = checkpoint.get('state_dict', checkpoint)
    return meta.get('quantizers') or described_in(state)


def described_in(state: Mapping[str, Any]) -> dict[str, dict]:
    """The descriptions in a state dict's metadata, by name."""
    metadata = getattr(state, '_metadata', None) or {}
    return {
        re.sub(r'^module\.', '', name): local[KEY]
        for name, local in metadata.items() if KEY in local
    }


def refuse_other_quantization(
        model: nn.Module, state: Mapping[str, Tensor], what: str,
        way_out: str, stored: Mapping[str, dict] | None = None) -> None:
    """Refuse a state that is not of ``model``'s quantization.

    Args:
        model (nn.Module): A converted model.
        state (Mapping[str, Tensor]): The state to be loaded into it.
        what (str): Where it comes from, for the message.
        way_out (str): What to do, for the message.
        stored (Mapping[str, dict], optional): What :func:`stored_quantizers`
            found. Defaults to None: keys and shapes alone count.

    Raises:
        ValueError: If quantizers are missing, uninitialised, too many, or of
            other bits, of another type, or otherwise of another meaning.
    """
    given = quantizer_bits(state)
    own = named_quantizers(model, False)
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
    other = _unlike(own, given, state, stored or {})
    if other:
        raise ValueError(f'{what} was quantized otherwise: '
                         f'{first_few(other, between="; ")}. {way_out}')
    empty = [name for name in own if not int(state[f'{name}.initialized'])]
    if empty:
        raise ValueError(f'{what} has no scales yet for '
                         f'{first_few(empty)}. {way_out}')


def refuse_unlike_part(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse a state, or a part of one, before mmengine loads it by halves.

    Its loaders only warn of keys that fit nowhere: a float model then answers
    with the latent weights, a quantized one with other numbers.

    Args:
        model (nn.Module): The model to be filled, without a wrapper.
        state (Mapping[str, Tensor]): The state, with its metadata.

    Raises:
        ValueError: If it has quantizers that are not the model's.
    """
    given = quantizer_bits(state)
    if not given:
        return
    own = {
        name: quantizer
        for name, quantizer in named_quantizers(model, False).items()
        if name in given or f'{name.rpartition(".")[0]}.weight' in state
    }
    if not own:
        raise ValueError(
            'these weights were trained with FPQ, and the model to fill has '
            f'no quantizers for them ({first_few(list(given), 2)}): it would '
            'answer with the latent weights that quantization is to round. '
            'Use fpq_plugin.load_model(config, checkpoint), whose model '
            "inferencers take as well; in a Runner the run's own config, "
            'with its FPQHook; in plain PyTorch convert(model) first')
    other = _unlike(own, given, state, described_in(state), 'in the model')
    if other:
        raise ValueError(
            'these weights were quantized otherwise than the model to fill: '
            f'{first_few(other, between="; ")}. Convert it '
            'with the options that the checkpoint was trained with')


def _unlike(own: Mapping[str, nn.Module], given: Mapping[str, int],
            state: Mapping[str, Any],
            stored: Mapping[str, dict],
            where: str = 'in the config') -> list[str]:
    """What to say of each quantizer that the two sides do not share."""
    lines = []
    pair: tuple[str, str] | None
    for name in {**own, **given}:
        if name not in own:
            pair = f'{given[name]} bits', 'float'
        elif name not in given:
            pair = 'float', f'{own[name].num_bits} bits'
        else:
            pair = differences(
                {'bits': given[name], **stored.get(name, {})},
                describe(own[name])) or _by_keys(name, own[name], state)
        if pair:
            lines.append(
                f'{name}: {pair[0]} in the checkpoint, {pair[1]} {where}')
    return lines


_TELLING = dict(fake='TorchAOFakeQuantize', clip='PACTFakeQuantize',
                offset='LSQPlusFakeQuantize')


def _by_keys(name: str, own: nn.Module,
             state: Mapping[str, Any]) -> tuple[str, str] | None:
    """How a quantizer's keys and shapes differ from the stored ones."""
    given = {
        key.removeprefix(f'{name}.'): tuple(value.shape)
        for key, value in state.items() if key.startswith(f'{name}.')
    }
    needed = {key: tuple(value.shape)
              for key, value in own.state_dict().items()}
    if given.keys() != needed.keys():
        told = next((kind for key, kind in _TELLING.items() if any(
            k.partition('.')[0] == key for k in given)), 'another type')
        return (f'{told} (with {", ".join(sorted(given))})',
                f'{type(own).__name__} (with {", ".join(sorted(needed))})')
    for key, shape in needed.items():
        if given[key] != shape and getattr(own, '_final_shape', True):
            return _grains(given[key]), _grains(shape)
    return None


def _grains(shape: tuple[int, ...]) -> str:
    size = 1
    for length in shape:
        size *= length
    return 'per tensor' if size == 1 else f'per channel ({size} steps)'
