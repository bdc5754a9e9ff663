"""mmcv's subclasses of torch's layers on Brevitas's quantizers."""

from mmcv.cnn.bricks import wrappers

from fpq_plugin import register_layer

from .backend import BREVITAS
from .convs import (
    BrevitasConv2d,
    BrevitasConv3d,
    BrevitasConvTranspose2d,
    BrevitasConvTranspose3d,
)
from .layers import BrevitasLinear


@register_layer(wrappers.Conv2d, BREVITAS.name)
class BrevitasMMCVConv2d(BrevitasConv2d, wrappers.Conv2d):
    """``mmcv.cnn.Conv2d`` as a ``QuantConv2d``."""


@register_layer(wrappers.Conv3d, BREVITAS.name)
class BrevitasMMCVConv3d(BrevitasConv3d, wrappers.Conv3d):
    """``mmcv.cnn.Conv3d`` as a ``QuantConv3d``."""


@register_layer(wrappers.ConvTranspose2d, BREVITAS.name)
class BrevitasMMCVConvTranspose2d(BrevitasConvTranspose2d,
                                  wrappers.ConvTranspose2d):
    """``mmcv.cnn.ConvTranspose2d`` as a ``QuantConvTranspose2d``."""


@register_layer(wrappers.ConvTranspose3d, BREVITAS.name)
class BrevitasMMCVConvTranspose3d(BrevitasConvTranspose3d,
                                  wrappers.ConvTranspose3d):
    """``mmcv.cnn.ConvTranspose3d`` as a ``QuantConvTranspose3d``."""


@register_layer(wrappers.Linear, BREVITAS.name)
class BrevitasMMCVLinear(BrevitasLinear, wrappers.Linear):
    """``mmcv.cnn.Linear`` as a ``QuantLinear``."""
