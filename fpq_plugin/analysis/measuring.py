"""What every measurement shares: layers, a model left alone, errors, bars."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import torch
from mmengine.utils import ProgressBar
from torch import Tensor, nn

from .._compat.restoring import kept_modes, same_randomness
from ..layers import QuantizedLayer, get_backend, quantized_type, route
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
    def of(cls, samples: Tensor) -> Estimate:
        """The mean of ``samples``, shape (n, )."""
        samples = samples.double()
        error = (
            samples.std() / len(samples)**0.5
            if len(samples) > 1 else torch.zeros(()))
        return cls(float(samples.mean()), float(error))

    def __str__(self) -> str:
        return f'{self.value:.4g} +- {self.error:.2g}'


_PACKAGES = dict(curvlinops='curvlinops-for-pytorch', matplotlib='matplotlib')


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


class Progress:
    """Counts steps of a measurement.

    Args:
        title (str): What is measured.
        total (int): Number of steps; 0 if nobody knows.
        shown (bool): Whether anything is printed.
    """

    def __init__(self, title: str, total: int, shown: bool) -> None:
        self._bar = None
        if shown:
            print(title, flush=True)
            self._bar = ProgressBar(total)

    def step(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def end(self) -> None:
        """Close the line."""
        if self._bar is not None:
            self._bar.file.write('\n')


@contextmanager
def quiet(model: nn.Module,
          seed: int,
          parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Eval mode, gradient for ``parameters`` alone, random numbers of a seed.

    On leaving, every module's mode, every ``requires_grad`` and every global
    random generator is as it was. Batch norm's statistics do not move.

    Args:
        model (nn.Module): The model to measure.
        seed (int): Seed of torch's random numbers inside.
        parameters (Iterable[nn.Parameter]): What is differentiated.
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


F = TypeVar('F', bound=Callable[..., Any])


def measured_routed(function: F) -> F:
    """Decorator: route the model, the first argument, for the call.

    An attention's projections, which torch computes without calling a layer,
    are layers inside; the values are the same. On leaving, the model is what
    it was.
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
    can be held against each other.

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
