"""LSQ as Brevitas quantizers, for Brevitas's own layers too."""

from __future__ import annotations

from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import FloatToIntImplType
from brevitas.proxy import (
    ActQuantProxyFromInjector,
    WeightQuantProxyFromInjector,
)
from torch import nn

from fpq_plugin.quantizers import LSQFakeQuantize

from .tensor_quant import ActTensorQuant, TensorQuant


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
