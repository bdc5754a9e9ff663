"""mmcv's subclasses of torch's layers, which its ``FFN`` and others use.

They differ from torch's for empty inputs under torch < 1.5 alone.
"""

from mmcv.cnn.bricks import wrappers

from .conv import QuantizedConv2d
from .linear import QuantizedLinear
from .quantized_layer import register_layer


@register_layer(wrappers.Conv2d)
class QuantizedMMCVConv2d(QuantizedConv2d, wrappers.Conv2d):
    """``mmcv.cnn.Conv2d`` on quantized input and weight."""


@register_layer(wrappers.Linear)
class QuantizedMMCVLinear(QuantizedLinear, wrappers.Linear):
    """``mmcv.cnn.Linear`` on quantized input and weight."""
