"""The fake quantizers of a model: found, observing, switched off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from .grid import Stage
from .quantizer import Quantizer


def named_quantizers(model: nn.Module,
                     remove_duplicate: bool = True) -> dict[str, Quantizer]:
    """The model's fake quantizers by name.

    Args:
        model (nn.Module): The model.
        remove_duplicate (bool): Whether a quantizer that several places
            share has one name only; a state dict has a key for each.
            Defaults to True.
    """
    return {
        name: module
        for name, module in model.named_modules(
            remove_duplicate=remove_duplicate)
        if isinstance(module, Quantizer)
    }


@contextmanager
def observing(quantizers: Iterable[Quantizer]) -> Iterator[None]:
    """Inside, these observe what they see, from nothing on."""
    quantizers = list(quantizers)
    for quantizer in quantizers:
        quantizer.reset_observer()
        quantizer._stage = Stage.OBSERVING
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.read_stage()


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Inside, no fake quantizer of the model quantizes."""
    were_on = {q: q._fake_quant_on for q in named_quantizers(model).values()}
    for quantizer in were_on:
        quantizer.enable_fake_quant(False)
    try:
        yield
    finally:
        for quantizer, on in were_on.items():
            quantizer.enable_fake_quant(on)
