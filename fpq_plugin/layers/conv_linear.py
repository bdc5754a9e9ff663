"""Quantized convolutions, (N, C, ...), and linear layers, (..., C)."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor, nn
from torch.nn import functional as F

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
