"""The mixin that turns a layer into its quantized form, in place."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from .._compat.tracing import whole_call
from .backends import Backend, get_backend


class QuantizedLayer(nn.Module):
    """A layer that computes ``op(SFP(input_quantizer(x)), quantized w)``.

    :meth:`swap` changes the class of an existing layer, so its parameters,
    their names and every reference to the layer stay; the quantizers become
    its children. A new layer type is one subclass::

        @register_layer(nn.Conv1d)
        class QuantizedConv1d(QuantizedLayer, nn.Conv1d):

            channel_axis = 1

            def op(self, x, weight):
                return self._conv_forward(x, weight, self.bias)

    Attributes:
        channel_axis (int): Channel axis of the output, for distillation.
        weight_axis (int): Output channels' axis of the weight. Defaults to 0.
        own_forward (bool): Whether :meth:`forward` is that of the float type,
            which may transform the weight before it is quantized. Defaults to
            False.
        float_type (type): The class before the swap.
    """

    channel_axis: int
    weight_axis = 0
    own_forward = False
    float_type: type[nn.Module]

    @classmethod
    def swap(cls,
             layer: nn.Module,
             weight_quantizer: nn.Module | None,
             input_quantizer: nn.Module | None,
             perturbation: nn.Module | None = None) -> None:
        """Make ``layer`` quantized in place; None leaves that part float."""
        device = layer.weight.device
        layer.__class__ = cls
        for name, child in (('weight_quantizer', weight_quantizer),
                            ('input_quantizer', input_quantizer),
                            ('perturbation', perturbation)):
            if child is not None:
                child.to(device).train(layer.training)
                # A frozen layer's scales are frozen: DDP asks at wrap time.
                child.requires_grad_(layer.weight.requires_grad)
            layer.add_module(name, child)
        if input_quantizer is not None:
            input_quantizer.over_batch = True

    def unswap(self) -> None:
        """Make the layer what it was before :meth:`swap`."""
        for name in ('weight_quantizer', 'input_quantizer', 'perturbation'):
            delattr(self, name)
        self.__class__ = self.float_type

    def op(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's linear operation on input ``x`` with ``weight``."""
        raise NotImplementedError

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        whole = whole_call(self, (x, *args), kwargs)
        if whole is not None:
            return whole
        return self.op(self.quantized_input(x),
                       self.quantized_weight(self.weight), *args, **kwargs)

    def quantized_weight(self, weight: Tensor) -> Tensor:
        """The weight that enters the operation."""
        return self._quantized(weight, self.weight_quantizer, True)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The tensor that enters the operation: quantized and perturbed."""
        return self._quantized(x, self.input_quantizer, False)

    def _quantized(self, x: Tensor, quantizer: nn.Module | None,
                   of_weight: bool) -> Tensor:
        if quantizer is None:
            return x
        perturbation = self.perturbation
        if perturbation is None or perturbation.of_weight != of_weight:
            return quantizer(x)
        return perturbation(x, quantizer)


def register_layer(float_type: type[nn.Module], backend: str = 'torch_ao'):
    """Class decorator: the decorated class is the quantized ``float_type``.

    Args:
        float_type (type): The layer type that the class quantizes.
        backend (str): The backend that it belongs to. Defaults to
            'torch_ao'.

    Returns:
        Callable: The decorator.
    """

    def register(cls: type[QuantizedLayer]) -> type[QuantizedLayer]:
        cls.float_type = float_type
        get_backend(backend).layers[float_type] = cls
        return cls

    return register


def quantized_type(layer: nn.Module,
                   backend: Backend) -> type[QuantizedLayer] | None:
    """The quantized class for ``layer``, None if there is none.

    That is the class registered for its type, or one made for a subclass of
    a registered type.
    """
    if type(layer) in backend.layers:
        return backend.layers[type(layer)]
    return derived_type(layer, backend)


def quantizable_types(backend: Backend) -> list[str]:
    """Names of the backend's registered layer types."""
    return sorted({float_type.__name__ for float_type in backend.layers})


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The model's quantized layers by name, in order of registration."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLayer)
    }


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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._runs:  # from ``super(type(self), self).forward`` (SparK)
            above: Any = super(self.float_type, self)
            return above.forward(*args, **kwargs)
        whole = whole_call(self, args, kwargs)
        if whole is not None:
            return whole
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


_FUSING_METHOD = 'switch_to_deploy'


def refuse_reparameterizing(model: nn.Module) -> None:
    """Make fusing the branches of quantized blocks an error.

    The blocks' own method reads the branches' latent weights and makes a
    plain convolution of them, without a word of the quantizers.

    Args:
        model (nn.Module): A converted model.
    """
    for module in model.modules():
        if hasattr(type(module), _FUSING_METHOD) and quantized_layers(module):
            vars(module).setdefault(_FUSING_METHOD, _refuse_to_fuse)


def allow_reparameterizing(model: nn.Module) -> None:
    """Undo :func:`refuse_reparameterizing`."""
    for module in model.modules():
        if vars(module).get(_FUSING_METHOD) is _refuse_to_fuse:
            del vars(module)[_FUSING_METHOD]


def _refuse_to_fuse(*args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError(
        f'{_FUSING_METHOD}: the branches are quantized, each with its own '
        'steps, and fusing them would drop that. Fuse the full-precision '
        'model and train that with FPQ, or take the quantizers off by '
        'fpq_plugin.to_float')
