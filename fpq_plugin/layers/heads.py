"""Which layers predict, in the heads of detectors and segmentors.

They are found by names and by what holds them, since no forward has run when a
model is converted: OpenMMLab's heads are named ``bbox_head``, ``decode_head``
and the like, have their inner layers in blocks with norm and activation, and
hold bare those that predict.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

HEAD = '_head'
# Held bare too, but read by other layers of the head: RPN's, RepPoints',
# fully connected ones of a second stage, projections, a mask's upsampling.
INNER = ('*_conv', '*_fcs', 'fc[0-9]*', '*proj*', 'upsample')
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def predicting(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """The layers that predict classes, boxes, masks...

    Args:
        model (nn.Module): The model.
        layers (Iterable[str]): Names of layers of it.

    Returns:
        list[str]: Those of them whose output a head returns; none of a
        classifier, which has its one layer at the end.
    """
    return [name for name in layers if _predicts(model, name)]


def is_in_head(name: str) -> bool:
    """Whether a layer's name says that it is a part of a head."""
    return any(part.endswith(HEAD) for part in name.split('.')[:-1])


def _predicts(model: nn.Module, name: str) -> bool:
    *above, part = name.split('.')
    while above:
        holder = model.get_submodule('.'.join(above))
        if isinstance(holder, nn.Sequential) and part != list(
                holder._modules)[-1]:
            return False
        kind = next((p for p in reversed(above) if not p.isdigit()), '')
        if kind.endswith(HEAD):
            return not any(fnmatchcase(part, each) for each in INNER)
        if not isinstance(holder, _CONTAINERS):
            return False
        *above, part = above
    return False
