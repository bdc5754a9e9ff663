"""What all measurements share: layers, errors, bars, a model left alone."""

from __future__ import annotations

import functools
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .._compat.restoring import kept_modes, same_randomness
from ..layers import QuantizedLayer, get_backend, quantized_type, route
from ..layers.computed_weights import is_computed
from ..layers.routing import RoutedModule
from ..options import matches, refuse_unmatched


@dataclass(frozen=True)
class Estimate:
    """Mean of independent samples.

    Attributes:
        value (float): The mean.
        error (float): Its standard error; 0.0 of a single sample, nothing
            being known of it.
    """

    value: float
    error: float

    @classmethod
    def from_samples(cls, samples: Tensor) -> Estimate:
        """The mean of ``samples``, shape (n, )."""
        samples = samples.double()
        error = (
            samples.std() / len(samples)**0.5
            if len(samples) > 1 else torch.zeros(()))
        return cls(float(samples.mean()), float(error))

    def __str__(self) -> str:
        return f'{_digits(self.value, 4)} +- {_digits(self.error, 2)}'


class ProgressBar:
    """Title, count and remaining time of a measurement, on stderr.

    A context manager. On a terminal it is a bar; a file or a pipe gets one
    line at the start and one at the end.

    Args:
        title (str): What is measured.
        total (int, optional): Number of steps; None if nobody knows.
        unit (str): What a step is, in the plural.
        shown (bool): Whether anything is written.
    """

    def __init__(self, title: str, total: int | None, unit: str,
                 shown: bool) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._shown = shown
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressBar:
        self._start = time.perf_counter()
        if not self._shown:
            return self
        if not sys.stderr.isatty():
            count = '' if self._total is None else f': {self._total} '
            self._write(self._title + count + (self._unit if count else ''))
            return self
        clock = (TimeElapsedColumn() if self._total is None else
                 TimeRemainingColumn(elapsed_when_finished=True))
        self._bar = Progress(
            TextColumn('{task.description}'), BarColumn(),
            MofNCompleteColumn(), TextColumn(self._unit), clock,
            console=Console(stderr=True))
        self._task = self._bar.add_task(self._title, total=self._total)
        self._bar.start()
        return self

    def step(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def __exit__(self, kind: type | None, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and kind is None:
            seconds = time.perf_counter() - self._start
            self._write(f'{self._title}: done in {seconds:.1f} s')

    def _write(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def left_unchanged(
        model: nn.Module,
        seed: int,
        parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Measure inside: eval mode, gradient for ``parameters`` alone, a seed.

    On leaving, every module's mode, every ``requires_grad`` and every global
    random generator is as it was. Batch norm's statistics do not move.

    Args:
        model (nn.Module): The model to measure.
        seed (int): Seed of torch's random numbers inside.
        parameters (Iterable[nn.Parameter]): What is differentiated. Defaults
            to none.
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


@contextmanager
def values_restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Change the tensors in place inside; on leaving they are as before."""
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, old in zip(tensors, kept):
            tensor.data.copy_(old)


@contextmanager
def hook_removed(handle: RemovableHandle) -> Iterator[None]:
    """The hook of ``handle`` acts inside; on leaving it is removed."""
    try:
        yield
    finally:
        handle.remove()


F = TypeVar('F', bound=Callable[..., Any])


def attention_as_layers(function: F) -> F:
    """Decorator: attention's projections are layers during the call.

    torch computes them without calling a layer; the model, the first
    argument, is routed for the call. The values are the same, and on leaving
    the model is what it was.
    """

    @functools.wraps(function)
    def measure(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = {m for m in model.modules() if isinstance(m, RoutedModule)}
        route(model)
        try:
            return function(model, *args, **kwargs)
        finally:
            for module in list(model.modules()):
                if isinstance(module, RoutedModule) and module not in before:
                    module.leave()

    return cast(F, measure)


def weighted_layers(model: nn.Module,
                    patterns: Iterable[str] | None = None,
                    key: str = 'layers') -> dict[str, nn.Module]:
    """The layers with a weight that is, or could be, quantized, by name.

    The same layers of a float model and of its quantized form, so that both
    can be held against each other. Those that compute their weight are left
    out, with a warning.

    Args:
        model (nn.Module): The model, converted or not.
        patterns (Iterable[str], optional): Names of layers or of modules
            that hold them, ``*`` allowed. Defaults to None, all.
        key (str): The option's name, for the message. Defaults to 'layers'.

    Raises:
        ValueError: If there are none, or a pattern matches none; the message
            has the nearest names.
    """
    backend = get_backend('torch_ao')
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLayer)
        or quantized_type(module, backend) is not None
    }
    # Noise on, and derivatives by, such a weight would be of no parameter.
    computed = [name for name, layer in found.items() if is_computed(layer)]
    if computed:
        warnings.warn(
            f'{key}: left out, since they compute their weight (a norm, a '
            f'parametrization): {", ".join(computed)}. Take that off first, '
            'as by remove_weight_norm or remove_parametrizations',
            stacklevel=2)
    found = {n: layer for n, layer in found.items() if n not in computed}
    if not found:
        raise ValueError('the model has no layer of a type that can be '
                         'quantized')
    if patterns is None:
        return found
    patterns = list(patterns)
    refuse_unmatched(key, patterns, list(found))
    return {
        name: layer
        for name, layer in found.items()
        if any(matches(name, pattern) for pattern in patterns)
    }


def layer_kind(layer: nn.Module, name: str) -> type[QuantizedLayer]:
    """The class of a layer's quantized form; it tells the layer's axes.

    Args:
        layer (nn.Module): The layer, quantized or not.
        name (str): Its name, for the message.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(layer, QuantizedLayer):
        return type(layer)
    kind = quantized_type(layer, get_backend('torch_ao'))
    if kind is None:
        raise ValueError(f'{name!r} is a {type(layer).__name__}, which has no '
                         'quantized form')
    return kind


def require_extras(*modules: str) -> None:
    """Refuse to go on without optional packages.

    Args:
        *modules (str): Of 'curvlinops' and 'matplotlib'.

    Raises:
        ImportError: Naming what to install.
    """
    missing = [_PACKAGES[m] for m in modules if find_spec(m) is None]
    if missing:
        raise ImportError(f'{" and ".join(missing)} missing: '
                          "pip install 'fpq-openmmlab[analysis]'")


def _digits(number: float, digits: int) -> str:
    """That many significant digits, of numbers below a million as usual."""
    return f'{float(f"{number:.{digits}g}"):g}'


_PACKAGES = dict(curvlinops='curvlinops-for-pytorch', matplotlib='matplotlib')
