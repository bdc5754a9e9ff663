"""What is compared: the teacher's layers, by which loss, and its value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import quantized_layers, route
from ..options import matches
from .losses import DistillationLoss

WAY_OUT = ("name the layer of the logits by the loss's option layer, as "
           "distillation=dict(type='LogitKD', layer='head.fc')")


def layers_of(criterion: DistillationLoss, names: Sequence[str],
              skipped: Mapping[str, str]) -> list[str]:
    """The layers that a loss compares.

    Args:
        criterion (DistillationLoss): The loss.
        names (Sequence[str]): All quantized layers, in order of
            registration.
        skipped (Mapping[str, str]): From layers that are not to be distilled
            to the pattern that says so.

    Returns:
        list[str]: Their names, without those of ``skipped``.

    Raises:
        ValueError: If the loss is of one layer, and that is not among them.
    """
    if criterion.layer is not None:
        found = [name for name in names if matches(name, criterion.layer)]
        if len(found) != 1:
            said = ', '.join(found) or 'none'
            raise ValueError(
                f'layer={criterion.layer!r} of {type(criterion).__name__} '
                'must match one quantized layer, and matches '
                f'{said}. The last ones are {", ".join(names[-5:])}')
        one = found[0]
    elif criterion.last_layer_only:
        one = logits_layer(names)
    else:
        return [name for name in names if name not in skipped]
    if one in skipped:
        raise ValueError(
            f'{type(criterion).__name__} compares {one} alone, which is not '
            f'to be distilled (skip {skipped[one]!r}): {WAY_OUT}, or leave '
            'that loss out')
    return [one]


def logits_layer(names: Sequence[str]) -> str:
    """The last layer that is not of an auxiliary head, by its name."""
    main = [name for name in names
            if not re.search(r'(^|[._])aux', name, re.IGNORECASE)]
    return (main or list(names))[-1]


def is_answer(values: Tensor, output: Any) -> bool:
    """Whether a layer's output is what the model returns.

    Args:
        values (Tensor): The layer's output.
        output (Any): What the model returned: a tensor, or several in a
            tuple, list or dict. What else it may be is not looked at.
    """
    if isinstance(output, Mapping):
        output = list(output.values())
    found = output if isinstance(output, (tuple, list)) else [output]
    # A training step returns losses.
    if not found or not all(isinstance(each, Tensor) and each.dim()
                            and not each.is_meta for each in found):
        return True
    own = values.detach().flatten()
    return own.is_meta or any(
        each.numel() == own.numel() and torch.equal(
            each.detach().flatten().to(own), own) for each in found)


def refuse_uncalled(criteria: Iterable[DistillationLoss], name: str,
                    model: str) -> None:
    """Refuse a loss of one layer that was not called.

    Args:
        criteria (Iterable[DistillationLoss]): The layer's losses.
        name (str): The layer.
        model (str): Which model did not call it.

    Raises:
        RuntimeError: If one of the losses is of this layer alone.
    """
    for criterion in criteria:
        if criterion.of_one_layer():
            raise RuntimeError(
                f'{type(criterion).__name__} compares {name} alone, and the '
                f'{model} did not call it: {WAY_OUT}')


def frozen_layers(teacher: nn.Module,
                  names: Iterable[str]) -> dict[str, nn.Module]:
    """Freeze a teacher, and find the layers to compare with.

    Args:
        teacher (nn.Module): The full-precision model, changed in place.
        names (Iterable[str]): The layers' names.

    Returns:
        dict[str, nn.Module]: All its modules by name.

    Raises:
        ValueError: If it is quantized or lacks a layer.
    """
    if quantized_layers(teacher):
        raise ValueError('the teacher is quantized: copy the model before '
                         'convert, or take its quantizers off: '
                         'fpq_plugin.to_float(teacher)')
    route(teacher)
    known = dict(teacher.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError('the teacher has no layer '
                         f'{", ".join(missing[:5])} to distill from')
    teacher.eval()
    teacher.requires_grad_(False)
    return known


def losses_of(criteria: Sequence[DistillationLoss], layer: Any, output: Any,
              teacher: Tensor, cloned: bool) -> tuple[Any, Tensor, list]:
    """One call's losses.

    Args:
        criteria (Sequence[DistillationLoss]): The layer's losses.
        layer (QuantizedLayer): The student's layer.
        output (Any): What it returned.
        teacher (Tensor): The teacher's output.
        cloned (bool): Whether the output is going to be changed in place.

    Returns:
        tuple: What the model goes on with, None for ``output``; the tensor
        that the losses hold on to; the pairs of criterion and loss.
    """
    axis: int = layer.channel_axis
    values: Tensor = values_of(output)
    out: Any = None
    if _lacks_batch(layer, values):
        values, teacher = values[None], teacher[None]
    losses = []
    for criterion in criteria:
        if values is output and _overrides_attach(criterion):
            out, loss = criterion.attach(values if out is None else out,
                                         teacher, axis)
            losses.append((criterion, loss))
    if cloned and losses:
        out = out.clone()
    elif cloned:
        values = values.clone()
    taken = [criterion for criterion, _ in losses]
    losses += [(each, each(values, teacher, axis)
                if values.numel() or each.takes_empty else values.sum(
                    dtype=torch.promote_types(values.dtype, torch.float32)))
               for each in criteria if each not in taken]
    return out, values, losses


def values_of(output: Any) -> Tensor:
    """A layer's output; of a tensor that carries its scale, the values."""
    return getattr(output, 'value', output)


def _overrides_attach(criterion: DistillationLoss) -> bool:
    """Whether the model is to go on with what ``attach`` returns."""
    return type(criterion).attach is not DistillationLoss.attach


def _lacks_batch(layer: nn.Module, output: Tensor) -> bool:
    """Whether a convolution's output, or a linear layer's, is one sample."""
    size = getattr(layer, 'kernel_size', ())
    axes = len(size) if isinstance(size, tuple) else 0
    return output.dim() == axes + 1


UNREAD = 100
"""After so many forwards whose losses nobody took a warning is due."""


class Tally:
    """The losses of the training forwards since they were last taken.

    Args:
        warn (Callable): Told once if they are never taken.
    """

    def __init__(self, warn: Callable[[str], Any]) -> None:
        self._warn = warn
        self._losses: dict[tuple[str, str], Tensor] = {}
        self._taken = self._stale = self._any = False
        self._unread = 0

    def start(self) -> None:
        """A training forward begins."""
        if self._taken:
            self._losses = {}
            self._unread = 0
        self._taken = self._stale = self._any = False
        self._unread += 1
        if self._unread == UNREAD:
            self._warn(
                f'{UNREAD} training forwards were distilled and loss() was '
                'not called: their graphs fill the memory. Call detach() to '
                'end the distillation')

    def pass_by(self) -> None:
        """A forward is not compared: what was taken is of the past."""
        self._stale = self._taken

    def add(self, label: str, name: str, loss: Tensor) -> None:
        """Count the loss of one call of one layer."""
        key = label, name
        past = self._losses.get(key)
        self._losses[key] = loss if past is None else past + loss
        self._any = True

    def take(self) -> dict[tuple[str, str], Tensor]:
        """The losses by label and layer; until the next forward again.

        Raises:
            RuntimeError: If there are none that are new.
        """
        if not self._losses:
            raise RuntimeError('no layer was distilled yet: was the student '
                               'called in training mode?')
        if self._stale:
            raise RuntimeError(
                'no layer was distilled since the loss was last taken: the '
                'student was called in eval mode, or without gradient')
        self._taken = True
        return self._losses

    def any(self) -> bool:
        """Whether the last training forward compared any layer."""
        return self._any

    def by_layer(self, label: str | None = None) -> dict[str, Tensor]:
        """The losses by layer, detached, also those already taken."""
        parts: dict[str, Tensor] = {}
        for (own, name), loss in self._losses.items():
            if label in (None, own):
                parts[name] = parts.get(name, 0) + loss.detach()
        return parts

    def clear(self) -> None:
        """Let all losses go."""
        self._losses = {}
