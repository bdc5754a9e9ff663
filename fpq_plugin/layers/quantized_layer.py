"""The mixin that quantizes a layer in place: convolutions, linear layers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from .._compat.tracing import whole_call
from .backends import Backend, get_backend
from .computed_weights import (
    is_computed,
    is_trainable,
    parametrized_base,
    read_weight,
    reparametrized,
    same_tensors,
    without_graph,
)
from .rewriting import KeepsItsWeight


class QuantizedLayer(KeepsItsWeight):
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
        own_forward (bool): Whether a forward computes the weight that is
            quantized, so that calibration has to see it there: the forward
            of the float type, weight norm. Defaults to whether the weight is
            computed.
        float_type (type): The class before the swap.
    """

    channel_axis: int
    weight_axis = 0
    float_type: type[nn.Module]

    @classmethod
    def swap(cls,
             layer: nn.Module,
             weight_quantizer: nn.Module | None,
             input_quantizer: nn.Module | None,
             perturbation: nn.Module | None = None) -> None:
        """Make ``layer`` quantized in place; None leaves that part float."""
        device = read_weight(layer).device
        layer.__class__ = cls
        trained = is_trainable(*layer.weight_source())
        for name, child in (('weight_quantizer', weight_quantizer),
                            ('input_quantizer', input_quantizer),
                            ('perturbation', perturbation)):
            if child is not None:
                child.to(device).train(layer.training)
                # A frozen layer's scales are frozen: DDP asks at wrap time.
                child.requires_grad_(trained)
            layer.add_module(name, child)
        if input_quantizer is not None:
            input_quantizer.over_batch = True

    def unswap(self) -> None:
        """Make the layer what it was before :meth:`swap`."""
        for name in ('weight_quantizer', 'input_quantizer', 'perturbation'):
            delattr(self, name)
        kind = self.float_type
        if parametrize.is_parametrized(self) and not same_tensors(
                type(self), kind):
            kind = reparametrized(type(self), parametrized_base(kind) or kind)
        self.__class__ = kind

    @property
    def own_forward(self) -> bool:
        """Whether a forward computes the weight that is quantized."""
        return is_computed(*self.weight_source())

    def weight_source(self) -> tuple[nn.Module, str]:
        """The module that has the weight, and its name there."""
        return self, 'weight'

    def __reduce_ex__(self, protocol):
        make, args, state, *rest = super().__reduce_ex__(protocol)
        return make, args, without_graph(state), *rest

    def complete(self) -> None:
        """Make what no pickle holds, once state and weight are there."""

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


# -- convolutions, (N, C, ...), and linear layers, (..., C) ---------------

class QuantizedConv(QuantizedLayer):
    """A convolution of any rank on quantized input and weight."""

    channel_axis = 1

    def op(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


@register_layer(nn.Conv1d)
class QuantizedConv1d(QuantizedConv, nn.Conv1d):
    """``nn.Conv1d`` on quantized input and weight."""


@register_layer(nn.Conv2d)
class QuantizedConv2d(QuantizedConv, nn.Conv2d):
    """``nn.Conv2d`` on quantized input and weight."""


@register_layer(nn.Conv3d)
class QuantizedConv3d(QuantizedConv, nn.Conv3d):
    """``nn.Conv3d`` on quantized input and weight."""


class QuantizedConvTranspose(QuantizedLayer):
    """A transposed convolution of any rank on quantized operands.

    The weight is (C_in, C_out / groups, ...): with groups, output channels
    of the same place in their group share a step.
    """

    channel_axis = 1
    weight_axis = 1

    def op(self,
           x: Tensor,
           weight: Tensor,
           output_size: list[int] | None = None) -> Tensor:
        rank = weight.dim() - 2
        padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, rank,
            self.dilation)
        run = (F.conv_transpose1d, F.conv_transpose2d,
               F.conv_transpose3d)[rank - 1]
        return run(x, weight, self.bias, self.stride, self.padding, padding,
                   self.groups, self.dilation)


@register_layer(nn.ConvTranspose1d)
class QuantizedConvTranspose1d(QuantizedConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` on quantized input and weight."""


@register_layer(nn.ConvTranspose2d)
class QuantizedConvTranspose2d(QuantizedConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` on quantized input and weight."""


@register_layer(nn.ConvTranspose3d)
class QuantizedConvTranspose3d(QuantizedConvTranspose, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` on quantized input and weight."""


@register_layer(nn.Linear)
class QuantizedLinear(QuantizedLayer, nn.Linear):
    """``nn.Linear`` on quantized input and weight; features are (..., C)."""

    channel_axis = -1

    def op(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


if find_spec('mmcv') is not None:
    # mmcv's subclasses, which its FFN and others use, differ from torch's for
    # empty inputs under torch < 1.5 alone: their own forward need not run.
    from mmcv.cnn.bricks import wrappers

    @register_layer(wrappers.Conv2d)
    class QuantizedMMCVConv2d(QuantizedConv2d, wrappers.Conv2d):
        """``mmcv.cnn.Conv2d`` on quantized input and weight."""

    @register_layer(wrappers.Conv3d)
    class QuantizedMMCVConv3d(QuantizedConv3d, wrappers.Conv3d):
        """``mmcv.cnn.Conv3d`` on quantized input and weight."""

    @register_layer(wrappers.ConvTranspose2d)
    class QuantizedMMCVConvTranspose2d(QuantizedConvTranspose2d,
                                       wrappers.ConvTranspose2d):
        """``mmcv.cnn.ConvTranspose2d`` on quantized input and weight."""

    @register_layer(wrappers.ConvTranspose3d)
    class QuantizedMMCVConvTranspose3d(QuantizedConvTranspose3d,
                                       wrappers.ConvTranspose3d):
        """``mmcv.cnn.ConvTranspose3d`` on quantized input and weight."""

    @register_layer(wrappers.Linear)
    class QuantizedMMCVLinear(QuantizedLinear, wrappers.Linear):
        """``mmcv.cnn.Linear`` on quantized input and weight."""
