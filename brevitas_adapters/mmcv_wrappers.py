"""mmcv's subclasses of torch's layers on Brevitas's quantizers."""

from mmcv.cnn.bricks import wrappers

from fpq_plugin import register_layer

from .backend import BREVITAS
from .layers import BrevitasConv2d, BrevitasLinear


@register_layer(wrappers.Conv2d, BREVITAS.name)
class BrevitasMMCVConv2d(BrevitasConv2d, wrappers.Conv2d):
    """``mmcv.cnn.Conv2d`` as a ``QuantConv2d``."""


@register_layer(wrappers.Linear, BREVITAS.name)
class BrevitasMMCVLinear(BrevitasLinear, wrappers.Linear):
    """``mmcv.cnn.Linear`` as a ``QuantLinear``."""
