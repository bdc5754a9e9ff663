"""Activations that multiply their input with a gate between 0 and 1.

``x * sigmoid(x)`` and ``x * hardsigmoid(x)`` make their gate, and read it,
inside of their forward, where no hook gets at it. Such a module is swapped in
place for one that quantizes its gate. The gate's range is known, so that its
step is, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quantizers import FixedFakeQuantize

GATE = 'gate_quantizer'


@dataclass(frozen=True)
class Gate:
    """What an activation multiplies its input with.

    Attributes:
        compute (Callable): The gate of an input.
        levels (int): One over the step of its quantizer.
    """

    compute: Callable[[Tensor], Tensor]
    levels: int


# torch has no functions of these names: a call of a function is none of them.
GATES = dict(swish=Gate(torch.sigmoid, 256),
             hard_swish=Gate(F.hardsigmoid, 255))
# By dotted name: no package need be imported to be known.
_KINDS = {
    'torch.nn.modules.activation.SiLU': 'swish',
    'torch.nn.modules.activation.Hardswish': 'hard_swish',
    'mmcv.cnn.bricks.swish.Swish': 'swish',
    'mmcv.cnn.bricks.hswish.HSwish': 'hard_swish',
}
_MADE: dict[type[nn.Module], type[GatedModule]] = {}


class GatedModule(nn.Module):
    """An activation whose gate is quantized.

    Attributes:
        ungated_type (type): The class before :meth:`enter`.
        gate (Gate): What it multiplies with.
        gate_quantizer (FixedFakeQuantize): The gate's quantizer.
    """

    ungated_type: type[nn.Module]
    gate: Gate
    gate_quantizer: FixedFakeQuantize

    @classmethod
    def enter(cls, module: nn.Module) -> None:
        """Let ``module``, which has its quantizer already, use it."""
        module.__class__ = cls

    def leave(self) -> None:
        """Make the module what it was."""
        delattr(self, GATE)
        self.__class__ = self.ungated_type

    def __reduce_ex__(self, protocol):
        state = super().__reduce_ex__(protocol)[2:]
        return new_gated, (self.ungated_type, ), *state

    def forward(self, x: Tensor) -> Any:
        return x * self.gate_quantizer(type(self).gate.compute(x))


def gate_kind(module: nn.Module) -> str:
    """A key of :data:`GATES`, or '' if a module is no such activation."""
    kind = type(module)
    return _KINDS.get(f'{kind.__module__}.{kind.__qualname__}', '')


def new_gated(kind: type[nn.Module]) -> nn.Module:
    """An empty module with a quantized gate, for a pickle to fill."""
    made = gated_type(kind)
    return made.__new__(made)


def gated_type(kind: type[nn.Module]) -> type[GatedModule]:
    """What an activation becomes.

    Args:
        kind (type): The class of one that :func:`gate_kind` knows.

    Returns:
        type: A subclass.
    """
    if kind not in _MADE:
        name = _KINDS[f'{kind.__module__}.{kind.__qualname__}']
        _MADE[kind] = type(
            f'Gated{kind.__name__}', (GatedModule, kind),
            dict(
                __doc__=f'``{kind.__name__}`` whose gate is quantized.',
                __module__=__name__,
                ungated_type=kind,
                gate=GATES[name]))
    return _MADE[kind]
