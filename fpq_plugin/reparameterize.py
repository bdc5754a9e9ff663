"""Blocks whose branches become one convolution for deployment (RepVGG)."""

from __future__ import annotations

from typing import NoReturn

from torch import nn

from .layers import quantized_layers

_METHOD = 'switch_to_deploy'


def refuse_reparameterizing(model: nn.Module) -> None:
    """Make fusing the branches of quantized blocks an error.

    The blocks' own method reads the branches' latent weights and makes a
    plain convolution of them, without a word of the quantizers.

    Args:
        model (nn.Module): A converted model.
    """
    for module in model.modules():
        if hasattr(type(module), _METHOD) and quantized_layers(module):
            vars(module).setdefault(_METHOD, _refuse)


def allow_reparameterizing(model: nn.Module) -> None:
    """Undo :func:`refuse_reparameterizing`."""
    for module in model.modules():
        if vars(module).get(_METHOD) is _refuse:
            del vars(module)[_METHOD]


def _refuse(*args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError(
        f'{_METHOD}: the branches are quantized, each with its own steps, and '
        'fusing them would drop that. Fuse the full-precision model and train '
        'that with FPQ, or take the quantizers off by fpq_plugin.to_float')
