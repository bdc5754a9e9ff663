"""Models that average their own weights: refused, or noticed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from mmengine.model import BaseAveragedModel
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..param_groups import quantizer_parameters
from ..state import first_few

_NAMES_OF_AVERAGES = re.compile(
    r'teacher|momentum|target|average|(^|_)(ema|swa)(_|$)')


def refuse_averaged(model: nn.Module) -> None:
    """Stop before a model is converted that averages its own weights.

    BYOL, MoCo and their like pair the parameters of two encoders by their
    order, mmdet's semi-supervised detectors those of two detectors. Scales
    of unlike bits would be averaged without a word.

    Raises:
        ValueError: If a submodule is an average of another.
    """
    averages = [
        name for name, module in model.named_modules()
        if isinstance(module, (BaseAveragedModel, AveragedModel))
    ]
    kinds = {kind.__name__ for kind in type(model).__mro__}
    # CAE's own average; mmdet's teachers.
    if hasattr(model, 'momentum_update') or 'SemiBaseDetector' in kinds:
        averages.append('teacher')
    if averages:
        raise ValueError(
            f'FPQ cannot quantize {type(model).__name__}: its '
            f'{averages[0]!r} is a moving average of its own weights. '
            'Train it in full precision, and quantize the model that is '
            'fine-tuned from it.')


def refuse_averaging_hooks(hooks: Iterable[Any]) -> None:
    """Stop before a run whose hook averages a part of the model.

    ``EMAHook``, which averages all of it, is no such hook.

    Raises:
        ValueError: Naming the hook.
    """
    for hook in hooks:
        if any(kind.__name__ == 'MeanTeacherHook'
               for kind in type(hook).__mro__):
            raise ValueError(
                f'FPQ cannot train beside {type(hook).__name__}: it averages '
                'a part of the model into another, the teacher, and would '
                'average scales of unlike bits. Train in full precision, and '
                'quantize the student or the teacher that comes of it')


def frozen_twins(model: nn.Module) -> list[str]:
    """Parts that look like averages of others: frozen, and of equal build.

    Args:
        model (nn.Module): A model, converted or not.

    Returns:
        list[str]: Names of direct children named like an average, all frozen,
        with the parameters of a sibling that is trained.
    """
    builds: dict[str, Any] = {}
    for name, child in model.named_children():
        parameters = dict(child.named_parameters())
        if parameters:
            builds[name] = (type(child), {
                key: p.shape for key, p in parameters.items()
                if '_quantizer.' not in key
            }, any(p.requires_grad for p in parameters.values()))
    return [
        name for name, (kind, shapes, trained) in builds.items()
        if not trained and _NAMES_OF_AVERAGES.search(name.lower())
        and any(other[:2] == (kind, shapes) and other[2]
                for other in builds.values())
    ]


class FrozenParts:
    """Tells if what is frozen moves: something averages into it.

    Looked at are the quantizers' frozen parameters, and frozen twins of
    trained parts.

    Args:
        model (nn.Module): A calibrated model.
        warn (Callable): Told once.
    """

    def __init__(self, model: nn.Module, warn: Callable[[str], Any]) -> None:
        self._warn = warn
        watched = quantizer_parameters(model)
        for name in frozen_twins(model):
            part = model.get_submodule(name)
            watched.update((f'{name}.{key}', parameter)
                           for key, parameter in part.named_parameters())
        self._start = [(name, p, _mark(p)) for name, p in watched.items()
                       if not p.requires_grad]

    def look(self) -> None:
        """Warn of those that have moved, once."""
        moved = [name for name, parameter, mark in self._start
                 if not parameter.requires_grad and _mark(parameter) != mark]
        if moved:
            self._start = []
            self._warn(
                f'FPQ: {first_few(moved, 3)} is frozen, and has changed: a '
                'hook averages a part of the model into another, which mixes '
                'scales of unlike bits or pairs them with weights. The result '
                'is of no use; train such a model in full precision')


def _mark(parameter: torch.Tensor) -> tuple[float, ...]:
    values = parameter.detach().double()
    return float(values.sum()), float(values.square().sum())
