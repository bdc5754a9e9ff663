"""Quantized convolutions."""

from torch import Tensor, nn

from .quantized_layer import QuantizedLayer, register_layer


@register_layer(nn.Conv2d)
class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """``nn.Conv2d`` on quantized input and weight; maps are (N, C, H, W)."""

    channel_axis = 1

    def op(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)
