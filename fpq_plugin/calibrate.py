"""Initial steps and zero points from a few batches of data, eqs. (4), (5)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._compat.restoring import kept_modes
from .layers import quantized_layers
from .quantizers import (
    Quantizer,
    Stage,
    full_precision,
    named_quantizers,
    observing,
)
from .wrappers import refuse_wrapped


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
    maximum over all batches, equations (4) and (5). Each module's training
    mode, and all buffers, are as before when this returns.

    Args:
        model (nn.Module): A converted model.
        batches (Iterable): The calibration data, what ``forward`` takes.
        forward (Callable, optional): Runs the model on one batch. Defaults
            to None: ``model(batch)``, or ``model(*batch)`` for a tuple or
            list.
        warn (Callable): Told of layers that no batch reached; they take
            their range from the first training batch that reaches them.
            Defaults to ``warnings.warn``.
        training (bool): Whether to run in training mode instead, batch norms
            aside, to reach layers that only training calls. Defaults to
            False.

    Raises:
        ValueError: If a range is not finite, the message names the layer, or
            if the model is not converted, or wrapped (DDP, torch.compile).
    """
    refuse_wrapped(model, 'calibrate')
    if not quantized_layers(model):
        raise ValueError('the model has no quantized layer: call '
                         'convert(model) first')
    if forward is None:
        forward = _call
    pending = uninitialized(model)
    inputs = dict(pending)
    for name, layer in quantized_layers(model).items():
        if layer.own_forward:
            continue
        quantizer = inputs.pop(_join(name, 'weight_quantizer'), None)
        if quantizer is not None:
            quantizer.reset_observer()
            quantizer.observe(layer.weight)
    if inputs:
        with _in_full_precision(model, training), observing(inputs.values()):
            for batch in batches:
                forward(model, batch)
    missed = []
    for name, quantizer in pending.items():
        if not quantizer.was_observed() and name in inputs:
            missed.append(name.rpartition('.')[0])
            continue
        try:
            quantizer.initialize()
        except ValueError as error:
            raise ValueError(
                f'calibration: {name}: {error}; look for NaN or inf in the '
                'weights, the batch norm statistics or the data') from error
    if missed:
        warn('calibration reached no input of '
             f'{", ".join(dict.fromkeys(missed))}')


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


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)
