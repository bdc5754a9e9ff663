"""Trainings that go wrong: stopped, and the layer named; averages refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseAveragedModel
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..param_groups import quantizer_parameters
from ..quantizers import named_quantizers
from ..state import first_few

# Sums of squares of larger values leave float32 in an ordinary map.
HUGE = 1e15


def non_finite(losses: Mapping[str, Any]) -> list[str]:
    """Names of losses that are not finite."""
    return [name for name, value in losses.items() if not _finite(value)]


def explain_non_finite(names: Sequence[str], model: nn.Module, args: tuple,
                       kwargs: dict) -> str:
    """What to say of losses that are not finite.

    The layer is found by running the forward again with a look at every
    module's output.

    Args:
        names (Sequence[str]): Names of the losses.
        model (nn.Module): The model; the backward and the step have not
            been taken, so the weights are those of the last good iteration.
        args (tuple): Positional arguments of the forward.
        kwargs (dict): Keyword arguments of the forward.
    """
    return (f'{", ".join(names)} is not finite. '
            f'{first_non_finite(model, args, kwargs)} The checkpoints written '
            'so far are good: resume from the last one with a lower learning '
            'rate, or, where steps of quantizers run away, with '
            'scale_lr_mult=0.1.')


@torch.no_grad()
def first_non_finite(model: nn.Module, args: tuple, kwargs: dict) -> str:
    """Say where the first value that is not finite appears in a forward.

    Args:
        model (nn.Module): The model.
        args (tuple): Positional arguments of the forward.
        kwargs (dict): Keyword arguments of the forward.

    Returns:
        str: A sentence naming a parameter, or else a module.
    """
    for name, tensor in model.named_parameters():
        if not _finite(tensor):
            return f'The parameter {name} is not finite.'
    found: list[str] = []
    largest: dict[str, float] = {}

    def look(name: str):

        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if not found and not _finite(output):
                found.append(name)
            if isinstance(output, torch.Tensor) and output.numel():
                largest[name] = float(output.abs().max())

        return hook

    handles = [
        module.register_forward_hook(look(name))
        for name, module in model.named_modules() if name
    ]
    try:
        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f'The first such output is that of {found[0]}.'
    name = max(largest, key=largest.__getitem__, default='')
    if name and largest[name] > HUGE:
        return (f'All layer outputs are finite, but those of {name} reach '
                f'{largest[name]:.1e}: the training has diverged.')
    return 'All layer outputs are finite: look at the loss itself.'


def _finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return (not value.is_floating_point()
                or bool(torch.isfinite(value).all()))
    if isinstance(value, (list, tuple)):
        return all(_finite(item) for item in value)
    return True


# Steps of good trainings were seen to grow 50 times.
FACTOR = 1000
# A layer that saw but one value in the calibration has no range to grow from.
LEAST_START = 1e-3


class RunawaySteps:
    """Compares the quantizers' steps with those that a training began with.

    Args:
        model (nn.Module): A converted and calibrated model.
        warn (Callable): Told once of the steps that have run away.
    """

    def __init__(self, model: nn.Module, warn: Callable[[str], Any]) -> None:
        self._model = model
        self._warn = warn
        self._start = self._steps()

    def look(self) -> None:
        """Warn of those that are more than ``FACTOR`` times as large."""
        now = self._steps()
        found = [
            f'{name} ({start:.2g}, now {now[name]:.2g})'
            for name, start in self._start.items()
            if now.get(name, 0) > FACTOR * max(start, LEAST_START)
        ]
        if found:
            self._start = {}
            self._warn(
                f'FPQ: the steps of {first_few(found, 3)} have grown more '
                f'than {FACTOR} times: the training has diverged. Start '
                'again with a lower learning rate, or with scale_lr_mult=0.1')

    def _steps(self) -> dict[str, float]:
        """Each quantizer's step, of several channels the largest."""
        return {
            name: float(quantizer.step().max())
            for name, quantizer in named_quantizers(self._model).items()
            if quantizer.has_step()
        }


def refuse_non_finite(model: nn.Module) -> None:
    """Refuse to save a model with a parameter that is not finite.

    Raises:
        FloatingPointError: Naming the parameters.
    """
    bad = [
        name for name, parameter in model.named_parameters()
        if not torch.isfinite(parameter).all()
    ]
    if bad:
        raise FloatingPointError(
            f'not saved: the parameter {first_few(bad)} is not finite. '
            'Lower the learning rate: from the start, or resumed from the '
            'last checkpoint, if there is one; those are good.')


# -- models that average their own weights --------------------------------

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
