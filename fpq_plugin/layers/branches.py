"""Blocks that train several branches and make one layer of them at the end.

RepVGG, MobileOne, RepLKNet. Quantized branches have steps of their own, and
their sum is not that of the one layer.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import nn

from .rewriting import WAY_OUT

_MERGE_BRANCHES = ('switch_to_deploy', 'merge_kernel', 'reparameterize')
_FUSE = (*_MERGE_BRANCHES, 'fuse', 'fuse_model', 'fuse_conv_bn',
         'convert_to_deploy')
# Blocks have a branch's layer not deeper than in a list of sequences.
_DEPTH = 3


def refuse_reparameterizing(model: nn.Module) -> None:
    """Make fusing in blocks of quantized layers an error.

    The blocks' own methods read the layers' latent weights and make plain
    layers of them, without a word of the quantizers.

    Args:
        model (nn.Module): A converted model.
    """
    for module in model.modules():
        methods = _methods(module, _FUSE)
        if methods and any(isinstance(part, KeepsItsWeight)
                           for part in module.modules()):
            for name in methods:
                vars(module).setdefault(
                    name, functools.partial(_refuse_to_fuse, name))


def allow_reparameterizing(model: nn.Module) -> None:
    """Undo :func:`refuse_reparameterizing`."""
    for module in model.modules():
        for name in _FUSE:
            found = vars(module).get(name)
            if getattr(found, 'func', None) is _refuse_to_fuse:
                del vars(module)[name]


def branches(model: nn.Module,
             layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Layers that stand side by side in a block that is to be fused.

    Args:
        model (nn.Module): The model.
        layers (Mapping[str, nn.Module]): Layers of it by name.

    Returns:
        dict: From the name of each such block to the names of two or more
        layers that read its input, in order.
    """
    blocks = [
        name for name, module in model.named_modules()
        if _methods(module, _MERGE_BRANCHES)
    ]
    inside: dict[tuple, list[str]] = {}
    for name, layer in layers.items():
        if not hasattr(layer, 'in_channels'):
            continue
        holders = [b for b in blocks if not b or name.startswith(f'{b}.')]
        block = max(holders, key=len, default=None)
        if block is None or name[len(block):].strip('.').count(
                '.') >= _DEPTH:
            continue
        alike = (layer.in_channels, layer.out_channels, layer.stride,
                 layer.groups)
        inside.setdefault((block, alike), []).append(name)
    return {
        block: names
        for (block, _), names in inside.items() if len(names) > 1
    }


def _methods(module: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Which of the methods a module has, to be called without arguments."""
    found = []
    for name in names:
        method = getattr(type(module), name, None)
        # One that takes arguments fuses features.
        if inspect.isfunction(method) and _takes_nothing(method):
            found.append(name)
    return found


def _takes_nothing(method: Callable) -> bool:
    rest = list(inspect.signature(method).parameters.values())[1:]
    return all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL,
                                               p.VAR_KEYWORD) for p in rest)


def _refuse_to_fuse(method: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(
        f'{method}: the branches are quantized, each with its own steps, and '
        f'fusing them would drop that. {WAY_OUT}')
