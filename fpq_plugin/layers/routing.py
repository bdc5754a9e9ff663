"""Modules whose own computations have to be seen: they become *routed*.

``F.linear(x, self.qkv.weight, bias)`` in a module's forward passes the layer
``qkv`` by, and with it its quantizers and its forward hooks. In a routed
module such a call becomes ``self.qkv(x)``, in student and teacher alike. A
routed attention's products of activations can be quantized too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .._compat.tracing import whole_call
from .attention_products import AttentionProducts, ProductCalls
from .computed_weights import parametrized_base

# By dotted name: no package need be imported to be known.
_READERS = {
    'torch.nn.modules.activation.MultiheadAttention',
    'torch.nn.modules.transformer.TransformerEncoder',
}
_ATTENTION = {'torch.nn.modules.activation.MultiheadAttention'}
_WRITTEN: dict[type[nn.Module], Any] = {}  # by register_routed
_MADE: dict[type[nn.Module], Any] = {}  # at run time


def register_weight_reader(kind: type[nn.Module]) -> type[nn.Module]:
    """Class decorator: the forward uses its linear layers' weights itself.

    Calls ``F.linear(x, self.<layer>.weight, ...)`` in the forward of such a
    module, or of a subclass, then are calls of the layer, so that it is
    quantized and distilled.

    Args:
        kind (type): The module's class.

    Returns:
        type: The same class.

    Examples:
        >>> import torch
        >>> from fpq_plugin import convert, register_weight_reader
        >>> @register_weight_reader
        ... class Tied(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.encode = torch.nn.Linear(8, 4)
        ...     def forward(self, x):
        ...         return torch.nn.functional.linear(
        ...             x, self.encode.weight)
        >>> model = Tied()
        >>> table = convert(model)
    """
    _READERS.add(_path(kind))
    return kind


def register_attention(kind: type[nn.Module]) -> type[nn.Module]:
    """Class decorator: the forward multiplies activations, as attention does.

    Its first product (``@``, ``torch.matmul``, ``torch.bmm``) of two
    activations is q k^T, its second attn v, and so on in turn;
    ``F.scaled_dot_product_attention`` is both. The option ``attention``
    quantizes their operands.

    Args:
        kind (type): The module's class.

    Returns:
        type: The same class.
    """
    _ATTENTION.add(_path(kind))
    return kind


def register_names(weight_readers: Iterable[str],
                   attention: Iterable[str]) -> None:
    """Register classes by dotted name, whether or not they are installed.

    Args:
        weight_readers (Iterable[str]): As :func:`register_weight_reader`.
        attention (Iterable[str]): As :func:`register_attention`.
    """
    _READERS.update(weight_readers)
    _ATTENTION.update(attention)


class RoutedModule(nn.Module):
    """A module whose reads of its layers' weights are calls of the layers.

    Attributes:
        unrouted_type (type): The class before :func:`route`.
        products (AttentionProducts): Where the products are quantized.
    """

    unrouted_type: type[nn.Module]

    @classmethod
    def enter(cls, module: nn.Module) -> None:
        """Make ``module`` routed, in place."""
        module.__class__ = cls

    def leave(self) -> None:
        """Make the module what it was."""
        if 'products' in self._modules:
            del self.products
        self.__class__ = self.unrouted_type

    def __reduce_ex__(self, protocol):
        state = super().__reduce_ex__(protocol)[2:]
        return new_routed, (self.unrouted_type, ), *state

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        whole = whole_call(self, args, kwargs)
        if whole is not None:
            return whole
        with _CallLayers(self):
            return self.unrouted_type.forward(self, *args, **kwargs)


class _CallLayers(TorchFunctionMode):
    """``F.linear`` with a child layer's weight is a call of that layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.layers = {
            id(child._parameters['weight']): child
            for child in module.children()
            if child._parameters.get('weight') is not None
        }
        self.products = None
        if 'products' in module._modules:
            self.products = ProductCalls(module.products)
        self.running: list[nn.Module] = []
        self.handles: list[Any] = []

    def __enter__(self):
        # A float layer's own forward reads its weight too.
        for layer in self.layers.values():
            self.handles += [
                layer.register_forward_pre_hook(self._start),
                layer.register_forward_hook(self._stop),
            ]
        return super().__enter__()

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*error)

    def _start(self, layer: nn.Module, args: tuple) -> None:
        self.running.append(layer)

    def _stop(self, layer: nn.Module, args: tuple, output: Any) -> None:
        self.running.remove(layer)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if self.products is not None and self.products.takes(func, args):
            return self.products(func, args, kwargs)
        return func(*args, **kwargs)

    def _linear(self,
                input: Tensor,
                weight: Tensor,
                bias: Tensor | None = None) -> Tensor:
        layer = self.layers.get(id(weight))
        if layer is None or layer in self.running:
            return F.linear(input, weight, bias)
        out = layer(input)
        if bias is layer.bias:
            return out
        if layer.bias is not None:
            out = out - layer.bias
        return out if bias is None else out + bias


def route(model: nn.Module) -> None:
    """Route every module of the model that needs it, in place."""
    for module in list(model.modules()):
        kind = type(module)
        if (not isinstance(module, RoutedModule)
                and _is_one_of(kind, _READERS)):
            _routed_type(kind).enter(module)


def route_attention(model: nn.Module, chosen: Callable[[str], bool],
                    build: Callable[[str], AttentionProducts]) -> list[str]:
    """Route the attention modules, with products to be quantized.

    Args:
        model (nn.Module): A model after :func:`route`, changed in place.
        chosen (Callable): Whether to take the module of a name.
        build (Callable): Makes the quantizers for the module of that name.

    Returns:
        list[str]: Names of the attention modules.
    """
    names = []
    for name, module in list(model.named_modules()):
        if not _is_one_of(type(module), _ATTENTION) or not chosen(name):
            continue
        parameter = next(module.parameters())
        if not isinstance(module, RoutedModule):
            _routed_type(type(module)).enter(module)
        # A frozen module's scales are frozen: DDP asks at wrap time.
        products = build(name).to(parameter.device).train(module.training)
        module.add_module(
            'products', products.requires_grad_(parameter.requires_grad))
        names.append(name)
    return names


def unroute(model: nn.Module) -> None:
    """Undo :func:`route`."""
    for module in list(model.modules()):
        if isinstance(module, RoutedModule):
            module.leave()


def register_routed(kind: type[nn.Module]) -> Callable:
    """Class decorator: modules of type ``kind`` are routed by the class."""

    def register(cls: type[RoutedModule]) -> type[RoutedModule]:
        cls.unrouted_type = kind
        _WRITTEN[kind] = cls
        return cls

    return register


def _is_one_of(kind: type[nn.Module], paths: set[str]) -> bool:
    return any(_path(base) in paths for base in kind.__mro__)


def new_routed(kind: type[nn.Module]) -> nn.Module:
    """An empty routed module of a float type, for a pickle to fill."""
    made = _routed_type(kind)
    return made.__new__(made)


def _routed_type(kind: type[nn.Module]) -> type[RoutedModule]:
    known = _WRITTEN.get(kind) or _MADE.get(kind)
    if known is not None:
        return known
    near: Any = next((k for k in kind.__mro__ if k in _WRITTEN), None)
    bases: tuple[type, ...] = RoutedModule, kind
    if near is not None:
        # A forward of its own comes first, and calls that of the routed one.
        own = kind.forward is not near.forward
        bases = (kind, _WRITTEN[near]) if own else (_WRITTEN[near], kind)
    made = type(
        f'Routed{kind.__name__}', bases,
        dict(
            __doc__=f'``{kind.__name__}``, routed.',
            __module__=__name__,
            unrouted_type=kind))
    if parametrized_base(kind) is None:  # that is a class of one module
        _MADE[kind] = made
    return made


def _path(kind: type) -> str:
    return f'{kind.__module__}.{kind.__qualname__}'
