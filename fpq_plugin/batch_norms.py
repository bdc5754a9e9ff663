"""Batch norms get the statistics that the trained model has without noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._compat.restoring import kept_modes
from .calibrate import run_batch
from .convert import refuse_wrapped


@torch.no_grad()
def reestimate_batch_norms(
        model: nn.Module,
        batches: Iterable[Any],
        forward: Callable[[nn.Module, Any], Any] | None = None) -> list[str]:
    """Set the running statistics of batch norms anew.

    Those that training leaves are of SFP's noise, and of weights that were
    rounded otherwise: with few bits a weight's rounding changes up to the end
    (Nagel et al., "Overcoming Oscillations in Quantization-Aware Training",
    2022). Here the model is as it is when it is evaluated, batch norms
    aside, whose mean and variance are the averages over the batches.
    Weights, scales and modes are as before; so are the norms that training
    does not update, and those that no batch reaches.

    Args:
        model (nn.Module): A model, quantized or not, not wrapped.
        batches (Iterable): Training data, what ``forward`` takes; each of
            the size that the model is trained with.
        forward (Callable, optional): Runs the model on one batch. Defaults
            to None: as in :func:`~fpq_plugin.calibrate`.

    Returns:
        list[str]: Names of the norms with new statistics.

    Raises:
        ValueError: If there is no batch, or the model is wrapped.
    """
    refuse_wrapped(model, 'reestimate_batch_norms')
    with kept_modes(model):
        if not model.training:
            model.train()
        norms = {name: module for name, module in model.named_modules()
                 if isinstance(module, _BatchNorm) and module.training
                 and module.running_mean is not None and module.momentum != 0}
        if not norms:
            return []
        model.eval()
        return _reestimate(model, norms, batches, forward or run_batch)


def _reestimate(model: nn.Module, norms: dict[str, _BatchNorm],
                batches: Iterable[Any], forward: Callable) -> list[str]:
    before = {
        name: ([buffer.clone() for buffer in norm.buffers()], norm.momentum)
        for name, norm in norms.items()
    }
    reached: list[str] = []
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # the average over the batches
            norm.train()
        got_any = False
        for batch in batches:
            got_any = True
            forward(model, batch)
        if not got_any:
            raise ValueError('reestimate_batch_norms got no batch: the loader '
                             'is empty, or a generator that was used up '
                             'before')
        reached = [name for name, norm in norms.items()
                   if norm.num_batches_tracked > 0]
    finally:
        for name, norm in norms.items():
            buffers, norm.momentum = before[name]
            for buffer, value in zip(norm.buffers(), buffers):
                if (name not in reached
                        or buffer is norm.num_batches_tracked):
                    buffer.copy_(value)
    return reached
