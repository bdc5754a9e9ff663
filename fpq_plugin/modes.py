"""Modules' modes, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.ao.quantization import FakeQuantizeBase


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
