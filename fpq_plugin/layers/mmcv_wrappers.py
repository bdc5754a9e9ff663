"""mmcv's subclasses of torch's layers, which its ``FFN`` and others use.

They differ from torch's for empty inputs under torch < 1.5 alone, so their
own forward need not run.
"""

from mmcv.cnn.bricks import wrappers

from .conv import QuantizedConv2d, QuantizedConv3d
from .conv_transpose import QuantizedConvTranspose2d, QuantizedConvTranspose3d
from .linear import QuantizedLinear
from .quantized_layer import register_layer


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
