"""Quantized linear layers."""

from torch import Tensor, nn
from torch.nn import functional as F

from .quantized_layer import QuantizedLayer, register_layer


@register_layer(nn.Linear)
class QuantizedLinear(QuantizedLayer, nn.Linear):
    """``nn.Linear`` on quantized input and weight; features are (..., C)."""

    channel_axis = -1

    def op(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)
