"""Measuring a float model in the form that its quantized one has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn

from ..layers.routing import RoutedModule, route

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
