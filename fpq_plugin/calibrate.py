"""Initial steps and zero points from a few batches of data, eqs. (4), (5)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModel, is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._compat.restoring import kept_modes
from .convert import refuse_wrapped
from .joints import refuse_lost_hooks
from .layers import quantized_layers
from .quantizers import (
    Quantizer,
    Stage,
    full_precision,
    named_quantizers,
    observing,
)

# A loader that has given so many may have no end.
MANY_BATCHES = 1000


def uninitialized(model: nn.Module) -> dict[str, Quantizer]:
    """The model's fake quantizers that have no step yet, by name."""
    return {
        name: quantizer for name, quantizer in named_quantizers(model).items()
        if not quantizer.is_initialized()
    }


@torch.no_grad()
def calibrate(model: nn.Module,
              batches: Iterable[Any],
              forward: Callable[[nn.Module, Any], Any] | None = None,
              warn: Callable[[str], Any] = warnings.warn,
              training: bool = False) -> None:
    """Set step and zero point of every fake quantizer that has none.

    The model runs in full precision and eval mode; ranges are minimum and
    maximum over all batches, equations (4) and (5). Tensors without elements
    are no observation. Each module's training mode, and all buffers, are as
    before when this returns; after an error the whole model is.

    Args:
        model (nn.Module): A converted model.
        batches (Iterable): The calibration data, what ``forward`` takes.
        forward (Callable, optional): Runs the model on one batch. Defaults
            to None: ``model(batch)``, ``model(*batch)`` for a tuple or list,
            and ``model(**batch)`` for a mapping whose keys are arguments of
            the model. Of a pair of images and integer labels a model of one
            argument gets the images; a model of MMEngine takes its
            loader's dicts.
        warn (Callable): Told of layers that no batch reached, which take
            their range from the first training batch that reaches them, of
            layers whose input was all zero, which stay float until a
            training batch has other values, that no quantizer needed a step,
            and of a thousand batches, which may have no end. Defaults to
            ``warnings.warn``.
        training (bool): Whether to run in training mode instead, batch norms
            aside, to reach layers that only training calls. Defaults to
            False.

    Raises:
        TypeError: If ``batches`` is one batch, or the model cannot take what
            is in it; the message names ``forward``.
        ValueError: If a range is not finite, the message names the layer, if
            there is no batch, or if the model is not converted, or wrapped
            (DDP, torch.compile).
    """
    refuse_wrapped(model, 'calibrate')
    refuse_lost_hooks(model)
    if not quantized_layers(model):
        raise ValueError('the model has no quantized layer: call '
                         'convert(model) first')
    if isinstance(batches, (Tensor, Mapping, str)):
        raise TypeError(
            f'batches is one {type(batches).__name__}, and must be an '
            'iterable of batches: calibrate(model, [batch])')
    pending = {
        name: quantizer for name, quantizer in named_quantizers(model).items()
        if not quantizer.is_initialized() or quantizer.is_waiting()
    }
    if not pending:
        warn('calibration had nothing to do: every fake quantizer has a step; '
             'to calibrate anew, convert anew')
    with _all_or_nothing(pending.values()):
        missed, zero = _calibrate(model, pending, batches,
                                  forward or run_batch, warn, training)
    if missed:
        warn('calibration reached no input of '
             f'{", ".join(dict.fromkeys(missed))}: no forward called it, so '
             'it stays float. (If a forward uses its weight instead, '
             'register_weight_reader mends it.)')
    if zero:
        warn(f'calibration saw only zeros in the input of {", ".join(zero)}, '
             'which stays float until a training batch has other values')


def _calibrate(model: nn.Module, pending: dict[str, Quantizer],
               batches: Iterable[Any], forward: Callable,
               warn: Callable[[str], Any],
               training: bool) -> tuple[list[str], list[str]]:
    """Layers whose input no batch reached, and those where it was zero."""
    inputs = dict(pending)
    for name, layer in quantized_layers(model).items():
        if layer.own_forward:
            continue
        quantizer = inputs.pop(_join(name, 'weight_quantizer'), None)
        if quantizer is not None:
            quantizer.reset_observer()
            quantizer.observe_weight(layer.weight)
    if inputs:
        number = 0
        with _in_full_precision(model, training), observing(inputs.values()):
            for number, batch in enumerate(batches, 1):
                forward(model, batch)
                if number == MANY_BATCHES:
                    warn(f'calibration has had {number} batches and goes on: '
                         'a few are enough, as by itertools.islice(batches, '
                         '10), and a loader without an end never comes to one')
        if not number:
            raise ValueError(
                'calibration got no batch: the loader is empty, or a '
                'generator that was used up before')
    missed, zero = [], []
    for name, quantizer in pending.items():
        owner = name.rpartition('.')[0]
        if not quantizer.was_observed():
            if name in inputs:
                missed.append(owner)
            continue
        try:
            quantizer.initialize()
        except ValueError as error:
            raise ValueError(
                f'calibration: {name}: {error}; look for NaN or inf in the '
                'weights, the batch norm statistics or the data') from error
        if quantizer.is_waiting():
            zero.append(owner)
    return missed, zero


@contextmanager
def _all_or_nothing(quantizers: Iterable[Quantizer]) -> Iterator[None]:
    """After an error inside, the quantizers' state is as it was."""
    before = {
        quantizer: {k: v.clone() for k, v in quantizer.state_dict().items()}
        for quantizer in quantizers
    }
    try:
        yield
    except BaseException:
        for quantizer, state in before.items():
            quantizer.reset_observer()
            for key, value in quantizer.state_dict().items():
                value.copy_(state[key])
            quantizer.read_stage()
        raise


def leave_uncalled(model: nn.Module) -> list[str]:
    """Leave the layers float whose input calibration did not reach.

    Args:
        model (nn.Module): A calibrated model.

    Returns:
        list[str]: Names of the layers that are float for that reason now,
        also those whose loaded state says so.
    """
    for name in uninitialized(model):
        owner = model.get_submodule(name.rpartition('.')[0])
        for quantizer in owner.children():
            if isinstance(quantizer, Quantizer):
                quantizer.leave_float()
    idle = (name for name, quantizer in named_quantizers(model).items()
            if quantizer.stage is Stage.IDLE)
    return list(dict.fromkeys(name.rpartition('.')[0] for name in idle))


@contextmanager
def _in_full_precision(model: nn.Module, training: bool) -> Iterator[None]:
    """All fake quantization off; modes, and in training buffers, as before."""
    kept = []
    if training:
        kept = [(b, b.clone()) for b in _other_buffers(model)]
    try:
        with kept_modes(model), full_precision(model):
            model.train(training)
            if training:
                for module in model.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
            yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def _other_buffers(model: nn.Module) -> list[torch.Tensor]:
    """All buffers but the quantizers'."""
    own = {
        id(buffer)
        for quantizer in named_quantizers(model).values()
        for buffer in quantizer.buffers()
    }
    return [b for b in model.buffers() if id(b) not in own]


def _join(name: str, part: str) -> str:
    return f'{name}.{part}' if name else part


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Run the model on a batch that can be its arguments in one way."""
    if (isinstance(model, BaseModel) and isinstance(batch, Mapping)
            and 'inputs' in batch):
        return model._run_forward(
            model.data_preprocessor(dict(batch), False), mode='tensor')
    args, kwargs = _arguments(model, batch)
    try:
        return model(*args, **kwargs)
    except (AttributeError, KeyError, TypeError) as error:
        if isinstance(batch, Tensor):
            raise
        raise TypeError(_misfit(model, batch)) from error


def _arguments(model: nn.Module, batch: Any) -> tuple[tuple, dict]:
    """What a model is to be called with for a batch.

    Raises:
        TypeError: If its forward does not take them.
    """
    while is_model_wrapper(model):
        model = model.module
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # a compiled one tells none
        signature = None
    ways: list[tuple[tuple, dict]] = [((batch, ), {})]
    if isinstance(batch, (tuple, list)):
        ways = [(tuple(batch), {})]
        if _has_labels(batch):
            ways.append(((batch[0], ), {}))
    elif isinstance(batch, Mapping) and signature is not None and all(
            key in signature.parameters for key in batch):
        ways.insert(0, ((), dict(batch)))
    for args, kwargs in ways:
        try:
            if signature is not None:
                signature.bind(*args, **kwargs)
        except TypeError:
            continue
        return args, kwargs
    raise TypeError(_misfit(model, batch))


def _has_labels(batch: tuple | list) -> bool:
    """Whether it is a batch of inputs and an integer for each."""
    if len(batch) != 2 or not all(isinstance(x, Tensor) for x in batch):
        return False
    x, labels = batch
    return (x.is_floating_point() and x.dim() > 1 and labels.dim() == 1
            and len(labels) == len(x) and labels.dtype in _INTEGERS)


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _misfit(model: nn.Module, batch: Any) -> str:
    kind = type(batch).__name__
    if isinstance(batch, (tuple, list)):
        kind = f'{kind} of {len(batch)}'
    elif isinstance(batch, Mapping):
        kind = f'{kind} with {", ".join(map(repr, batch))}'
    return (f'calibration: the forward of {type(model).__name__} does not '
            f'take a batch that is a {kind}; say how by forward=, as '
            'calibrate(model, batches, forward=lambda model, batch: '
            'model(batch[0]))')
