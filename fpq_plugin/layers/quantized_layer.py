"""The mixin that turns a layer into its quantized form, in place."""

from __future__ import annotations

from torch import Tensor, nn

from ..backends import Backend, get_backend


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
        channel_axis (int): Channel axis of the output, for CSD (spec 4).
        float_type (type): The class before the swap.
    """

    channel_axis: int
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

    def forward(self, x: Tensor) -> Tensor:
        weight = self._quantized(self.weight, self.weight_quantizer, True)
        return self.op(self.quantized_input(x), weight)

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
    """The registered quantized class for ``layer``, None if there is none."""
    return backend.layers.get(type(layer))


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
