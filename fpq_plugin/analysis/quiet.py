"""Measuring a model without a trace of it left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..calibration_data import same_randomness
from ..modes import kept_modes


@contextmanager
def quiet(model: nn.Module,
          seed: int,
          parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Eval mode, gradient for ``parameters`` alone, random numbers of a seed.

    On leaving, every module's mode, every ``requires_grad`` and every global
    random generator is as it was. Batch norm's statistics do not move.

    Args:
        model (nn.Module): The model to measure.
        seed (int): Seed of torch's random numbers inside.
        parameters (Iterable[nn.Parameter]): What is differentiated.
    """
    wanted = {id(parameter) for parameter in parameters}
    needs = {p: p.requires_grad for p in model.parameters()}
    try:
        for parameter in needs:
            parameter.requires_grad_(id(parameter) in wanted)
        with kept_modes(model), same_randomness(), (
                torch.set_grad_enabled(bool(wanted))):
            model.eval()
            torch.manual_seed(seed)
            yield
    finally:
        for parameter, need in needs.items():
            parameter.requires_grad_(need)
