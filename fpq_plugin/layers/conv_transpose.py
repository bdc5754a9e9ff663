"""Quantized transposed convolutions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .quantized_layer import QuantizedLayer, register_layer


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
