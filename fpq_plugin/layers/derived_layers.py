"""Quantized classes made at run time, for subclasses of registered types."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from .._compat.tracing import whole_call
from .backends import Backend
from .computed_weights import (
    PARAMETRIZATIONS,
    parametrized_base,
    read_weight,
    reparametrized,
)
from .quantized_layer import QuantizedLayer

_OPS = frozenset([
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d,
    F.conv_transpose2d, F.conv_transpose3d
])


class Derived:
    """Mixin: a class that was made at run time, which no pickle finds.

    Attributes:
        made_from (tuple): The registered quantized class and the subclass
            that the class was made of.
    """

    made_from: tuple[type[QuantizedLayer], type[nn.Module]]

    def __reduce_ex__(self, protocol):
        state = super().__reduce_ex__(protocol)[2:]
        return new_layer, self.made_from, *state


class OwnForward(Derived):
    """Mixin: the float type's own forward runs on quantized operands.

    What it does around the operation stays: padding by the input's size, a
    weight that is standardized first. The operation is caught where the
    forward calls it, and there gets the quantized input and the quantized
    (transformed) weight.
    """

    own_forward = True
    _runs = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._runs:  # from ``super(type(self), self).forward`` (SparK)
            above: Any = super(self.made_from[1], self)
            return above.forward(*args, **kwargs)
        whole = whole_call(self, args, kwargs)
        if whole is not None:
            return whole
        self._runs = True
        try:
            with _QuantizedOperands(self):
                return self.made_from[1].forward(self, *args, **kwargs)
        finally:
            del self._runs


class _QuantizedOperands(TorchFunctionMode):
    """Quantizes input and weight of the layer's operation."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.shape = read_weight(layer).shape

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _OPS:
            args = list(args)
            x = args.pop(0) if args else kwargs.pop('input')
            weight = args.pop(0) if args else kwargs.pop('weight')
            if weight.shape == self.shape:
                x = self.layer.quantized_input(x)
                weight = self.layer.quantized_weight(weight)
            return func(x, weight, *args, **kwargs)
        return func(*args, **kwargs)


def quantized_type(layer: nn.Module,
                   backend: Backend) -> type[QuantizedLayer] | None:
    """The quantized class for ``layer``, None if there is none.

    That is the class registered for its type, or one made for a subclass of
    a registered type.
    """
    return None if why_float(layer, backend) else _type_for(
        type(layer), backend)


def why_float(layer: nn.Module, backend: Backend) -> str | None:
    """Why there is no quantized class for ``layer``, None if there is one.

    Layers that hold modules of their own (adapters, other quantizers) are
    more than a linear operation.

    Args:
        layer (nn.Module): The layer.
        backend (Backend): The backend with the registered types.
    """
    kind = type(layer)
    if _root(kind, backend) is None:
        return f'type {_path(kind)} not registered'
    if kind in backend.layers:
        return None
    inside = [n for n, _ in layer.named_children() if n != PARAMETRIZATIONS]
    if inside:
        return (f'type {_path(kind)} not registered, and it holds '
                f'{", ".join(inside)}')
    if is_lazy(layer._parameters.get('weight')):
        return 'lazy: its weight is not there yet'
    return None


def _root(kind: type[nn.Module],
          backend: Backend) -> type[nn.Module] | None:
    """The registered type that ``kind`` is, or is a subclass of."""
    return next((base for base in kind.__mro__ if base in backend.layers),
                None)


def _path(kind: type) -> str:
    return f'{kind.__module__}.{kind.__qualname__}'


def _type_for(kind: type[nn.Module],
              backend: Backend) -> type[QuantizedLayer]:
    if kind in backend.layers:
        return backend.layers[kind]
    below = parametrized_base(kind)
    if below is not None:
        made: Any = reparametrized(kind, _type_for(below, backend))
        made.float_type = kind
        return made
    root: Any = _root(kind, backend)
    made = derived_type(backend.layers[root], kind)
    return backend.derived.setdefault(kind, made)


_MADE: dict[tuple[Any, Any], type] = {}


def derived_type(quantized: type[QuantizedLayer],
                 kind: type[nn.Module]) -> type[QuantizedLayer]:
    """The quantized class for a subclass of a registered type, made once.

    Args:
        quantized (type): What is registered for the type.
        kind (type): The subclass.

    Returns:
        type: The class.
    """
    if (quantized, kind) in _MADE:
        return _MADE[quantized, kind]
    root = quantized.float_type
    plain = all(
        getattr(kind, name, None) is getattr(root, name, None)
        for name in ('forward', '_conv_forward'))
    _MADE[quantized, kind] = type(
        f'Quantized{kind.__name__}',
        (Derived if plain else OwnForward, quantized, kind),
        dict(
            __doc__=f'``{kind.__name__}`` on quantized operands.',
            __module__=__name__,
            float_type=kind,
            made_from=(quantized, kind)))
    return _MADE[quantized, kind]


def new_layer(quantized: type[QuantizedLayer],
              kind: type[nn.Module]) -> QuantizedLayer:
    """An empty layer of a derived class, for a pickle to fill."""
    made = derived_type(quantized, kind)
    return made.__new__(made)
