"""Quantized convolutions; maps are (N, C, ...)."""

from torch import Tensor, nn

from .quantized_layer import QuantizedLayer, register_layer


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
