"""Quantized classes for subclasses of the registered layer types."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ..backends import Backend

_OPS = frozenset([
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d,
    F.conv_transpose2d, F.conv_transpose3d
])


class OwnForward:
    """Mixin: the float type's own forward runs on quantized operands.

    What it does around the operation stays: padding by the input's size, a
    weight that is standardized first. The operation is caught where the
    forward calls it, and there gets the quantized input and the quantized
    (transformed) weight.
    """

    own_forward = True
    float_type: type[nn.Module]
    _runs = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._runs:  # from ``super(type(self), self).forward`` (SparK)
            above: Any = super(self.float_type, self)
            return above.forward(*args, **kwargs)
        self._runs = True
        try:
            with _QuantizedOperands(self):
                return self.float_type.forward(self, *args, **kwargs)
        finally:
            del self._runs


class _QuantizedOperands(TorchFunctionMode):
    """Quantizes input and weight of the layer's operation."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _OPS:
            args = list(args)
            x = args.pop(0) if args else kwargs.pop('input')
            weight = args.pop(0) if args else kwargs.pop('weight')
            if weight.shape == self.layer.weight.shape:
                x = self.layer.quantized_input(x)
                weight = self.layer.quantized_weight(weight)
            return func(x, weight, *args, **kwargs)
        return func(*args, **kwargs)


def derived_type(layer: nn.Module, backend: Backend) -> type | None:
    """The quantized class for a subclass of a registered type.

    It is made at the first call and kept. Layers that hold modules of their
    own (adapters, parametrizations, other quantizers) are more than a linear
    operation and get none.

    Args:
        layer (nn.Module): The layer.
        backend (Backend): The backend with the registered types.

    Returns:
        type | None: The class, None if there is none.
    """
    kind = type(layer)
    root = next((base for base in kind.__mro__ if base in backend.layers),
                None)
    if root is None or any(layer.children()) or is_lazy(layer.weight):
        return None
    if kind not in backend.derived:
        plain = all(
            getattr(kind, name, None) is getattr(root, name, None)
            for name in ('forward', '_conv_forward'))
        bases = (backend.layers[root], kind)
        backend.derived[kind] = type(
            f'Quantized{kind.__name__}',
            bases if plain else (OwnForward, *bases),
            dict(
                __doc__=f'``{kind.__name__}`` on quantized operands.',
                __module__=__name__,
                float_type=kind))
    return backend.derived[kind]
