"""Modules' modes and random states, put back as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from .torch_ao import FakeQuantizeBase


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Inside, call ``train`` and ``eval`` at will.

    On leaving, every module's mode is as it was, and so are the switches of
    torch.ao's fake quantizers, which ``train`` turns as well.

    Args:
        model (nn.Module): The model.
    """
    modes = {module: module.training for module in model.modules()}
    switches = [
        (switch, switch.clone()) for module in modes
        if isinstance(module, FakeQuantizeBase)
        for switch in (module.observer_enabled, module.fake_quant_enabled)
    ]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for switch, value in switches:
            switch.copy_(value)


@contextmanager
def same_randomness() -> Iterator[None]:
    """Give every global random generator back its state on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        gpus = ([torch.cuda.current_device()]
                if torch.cuda.is_initialized() else [])
        with torch.random.fork_rng(gpus):  # of all it warns
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
