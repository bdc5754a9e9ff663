"""FPQ's quantizers as Brevitas calls them; LSQ as Brevitas's own."""

from __future__ import annotations

from types import SimpleNamespace

from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import FloatToIntImplType
from brevitas.proxy import (
    ActQuantProxyFromInjector,
    WeightQuantProxyFromInjector,
)
from torch import Tensor, nn

from fpq_plugin.perturbation import StochasticFeaturePerturbation
from fpq_plugin.quantizers import BaseFakeQuantize, LSQFakeQuantize, Quantizer

from .stock import StockQuantizer


def metadata(quantizer: BaseFakeQuantize | StockQuantizer,
             x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a Brevitas tensor quantizer returns beside the value.

    Args:
        quantizer (BaseFakeQuantize | StockQuantizer): The quantizer of ``x``.
        x (Tensor): What it quantizes.

    Returns:
        tuple: Step, in units of ``x``, and zero point, both detached and
        broadcasting to ``x``; bit width, a scalar.
    """
    if isinstance(quantizer, StockQuantizer):
        return quantizer.metadata()
    step = quantizer.step()
    parts = step, quantizer.zero_point.to(step)
    if quantizer.is_per_channel:
        parts = tuple(quantizer.along_channels(part, x) for part in parts)
    else:
        parts = tuple(part.reshape(()) for part in parts)
    return *parts, quantizer.bits.to(step)


class TensorQuant(nn.Module):
    """A :class:`~fpq_plugin.Quantizer`, with SFP, as Brevitas calls it.

    Sits where Brevitas has its ``RescalingIntQuant``, under a proxy of
    Brevitas's own type, so that every export manager and graph utility knows
    the proxy. SFP (equations (9) and (14)) acts here, in training only: in
    export Brevitas's handler runs instead of this module, and in
    ``brevitas.graph.calibrate.calibration_mode`` it only observes.

    A weight's quantizer that has no step takes it from the weight, which is
    at hand and the same on every rank.

    Args:
        of_weight (bool): Whether it quantizes a weight.

    Attributes:
        quantizer (Quantizer): The quantizer; a subclass says where it is.
        perturbation (StochasticFeaturePerturbation, optional): SFP, of an
            activation.
        observer_only (bool): Set by Brevitas's ``calibration_mode``.
        int_quant: Where Brevitas looks for a view of the input: none.
    """

    quantizer: Quantizer
    perturbation: StochasticFeaturePerturbation | None
    int_quant = SimpleNamespace(input_view_impl=nn.Identity())

    def __init__(self, of_weight: bool) -> None:
        super().__init__()
        self.of_weight = of_weight
        self.observer_only = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantize, and in training perturb, ``x`` of any shape.

        Returns:
            tuple: Value of ``x``'s shape; step, in units of ``x``, and zero
            point, both detached and broadcasting to ``x``; bit width.

        Raises:
            RuntimeError: If a feature's quantizer is not calibrated, in eval
                mode or in distributed training.
        """
        quantizer = self.quantizer
        if self.observer_only:
            quantizer.observe(x)
            value = x
        elif self.of_weight:
            if quantizer.lacks_step() and x.numel():
                quantizer.observe_weight(x)
                quantizer.initialize()
            value = quantizer(x)
        elif self.training and self.perturbation is not None:
            value = self.perturbation(x, quantizer)
        else:
            if not self.training:
                # Brevitas asks for the scale with a dummy x.
                quantizer.require_step()
            value = quantizer(x)
        return value, *metadata(quantizer, x)

    def init_scale(self) -> None:
        """End of Brevitas's ``calibration_mode``: what it saw is the step."""
        if self.quantizer.was_observed():
            self.quantizer.initialize()


class ActTensorQuant(TensorQuant):
    """The tensor quantizer of an activation; it owns the parts.

    Args:
        quantizer (Quantizer): The quantizer.
        perturbation (StochasticFeaturePerturbation, optional): SFP. Defaults
            to None, off.
    """

    def __init__(
            self,
            quantizer: Quantizer,
            perturbation: StochasticFeaturePerturbation | None = None
    ) -> None:
        super().__init__(of_weight=False)
        self.quantizer = quantizer
        self.perturbation = perturbation
        quantizer.over_batch = True


class LayerTensorQuant(TensorQuant):
    """The tensor quantizer of a converted layer; the layer owns the parts.

    So the quantizers have the names, and the checkpoints the keys, that they
    have with the other backend.

    Args:
        layer (QuantizedLayer): The converted layer.
        of_weight (bool): Whether it quantizes the weight, or the input.
    """

    def __init__(self, layer: nn.Module, of_weight: bool) -> None:
        super().__init__(of_weight)
        # In a list it is no submodule, and a deep copy points to the copy.
        self._layer = [layer]

    # torch.jit.trace would compile them.
    __jit_unused_properties__ = ('quantizer', 'perturbation')

    @property
    def quantizer(self) -> Quantizer:  # type: ignore[override]
        layer, = self._layer
        return (layer.weight_quantizer
                if self.of_weight else layer.input_quantizer)

    @property
    def perturbation(  # type: ignore[override]
            self) -> StochasticFeaturePerturbation | None:
        return self._layer[0].perturbation


# -- LSQ as Brevitas quantizers, for Brevitas's own layers too ------------

class LSQWeightTensorQuant(TensorQuant):
    """LSQ of a weight: a step per output channel, symmetric, signed.

    Args:
        bit_width (int): Bits, 2 to 8.
        module (nn.Module | tuple): The layer, or the layers that share it.

    Raises:
        ValueError: If ``bit_width`` is not an integer of 2 to 8.
    """

    def __init__(self, bit_width: int,
                 module: nn.Module | tuple[nn.Module, ...]) -> None:
        super().__init__(of_weight=True)
        layer = module[0] if isinstance(module, tuple) else module
        axis = layer.output_channel_dim
        self.quantizer = LSQFakeQuantize(
            bit_width, symmetric=True, per_channel=True, ch_axis=axis,
            num_channels=layer.weight.shape[axis])


class LSQActTensorQuant(ActTensorQuant):
    """LSQ of a feature: one step, unsigned, zero point as calibrated.

    Args:
        bit_width (int): Bits, 2 to 8.

    Raises:
        ValueError: If ``bit_width`` is not an integer of 2 to 8.
    """

    def __init__(self, bit_width: int) -> None:
        super().__init__(LSQFakeQuantize(bit_width))


class _LSQ(ExtendedInjector):
    bit_width = 4
    narrow_range = False
    float_to_int_impl_type = FloatToIntImplType.ROUND


class LSQWeightPerChannel(_LSQ):
    """4-bit LSQ weights, one step per output channel.

    The step starts from the weight's range; its gradient carries LSQ's
    factor. ``weight_bit_width`` may be 2 to 8.

    Examples:
        >>> from brevitas.nn import QuantLinear
        >>> from brevitas_adapters import LSQWeightPerChannel
        >>> layer = QuantLinear(8, 4, weight_quant=LSQWeightPerChannel,
        ...                     weight_bit_width=3)
    """

    proxy_class = WeightQuantProxyFromInjector
    tensor_quant = LSQWeightTensorQuant
    signed = True


class LSQActPerTensor(_LSQ):
    """4-bit LSQ activations, asymmetric, unsigned, one step.

    Step and zero point come from ``calibration_mode``, or from the first
    training batch; the step is learned from then on. ``input_bit_width`` may
    be 2 to 8.

    Examples:
        >>> from brevitas.nn import QuantLinear
        >>> from brevitas_adapters import LSQActPerTensor
        >>> layer = QuantLinear(8, 4, input_quant=LSQActPerTensor,
        ...                     input_bit_width=3)
    """

    proxy_class = ActQuantProxyFromInjector
    tensor_quant = LSQActTensorQuant
    signed = False
