"""What a state dict holds, and says of quantization, held against a model."""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .joints.attaching import SIDES
from .layers import quantized_layers
from .quantizers import (
    FORMER_DEFAULT,
    KEY,
    LogLSQFakeQuantize,
    describe,
    differences,
    is_of_lsq,
    named_quantizers,
)


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
        raise ValueError(
            f'{what} was quantized otherwise: '
            f'{first_few(other, between="; ")}. '
            f'{_former_default(own, state, stored or {})}'
            f'{_of_target(own, given, other)}{way_out}')
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
    stored = described_in(state)
    other = _unlike(own, given, state, stored, 'in the model')
    if other:
        raise ValueError(
            'these weights were quantized otherwise than the model to fill: '
            f'{first_few(other, between="; ")}. '
            f'{_former_default(own, state, stored)}'
            f'{_of_target(own, given, other)}Convert it with the options that '
            'the checkpoint was trained with')


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


def _former_default(own: Mapping[str, nn.Module], state: Mapping[str, Any],
                    stored: Mapping[str, dict]) -> str:
    """What to say where the state is of the former default type."""
    old = any(isinstance(quantizer, LogLSQFakeQuantize)
              and is_of_lsq(state, f'{name}.', stored.get(name, {}))
              for name, quantizer in own.items())
    return f'{FORMER_DEFAULT}. ' if old else ''


def _of_target(own: Mapping[str, nn.Module], given: Mapping[str, int],
               other: Sequence[str]) -> str:
    """What to say where one of the two was made for an engine."""
    if any(name.rpartition('.')[2] in SIDES.values() and name not in own
           for name in given):
        return ('It was trained for an engine, with the option target, which '
                'is missing here. ')
    if any('narrow_range' in line for line in other):
        return ('target sets narrow_range=True for weights of 8 bits, and '
                'weight=dict(narrow_range=False) keeps -128. ')
    return ''


_TELLING = dict(fake='TorchAOFakeQuantize', clip='PACTFakeQuantize',
                offset='LSQPlusFakeQuantize', log_scale='LogLSQFakeQuantize')


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


# -- weights: read, held against a model, loaded --------------------------

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
