"""Brevitas's convolutions as FPQ's, (N, C, ...), and mmcv's wrappers."""

from __future__ import annotations

from importlib.util import find_spec

from brevitas.nn import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
)
from brevitas.quant_tensor import QuantTensor
from torch import Tensor, nn

from fpq_plugin._compat.tracing import whole_call
from fpq_plugin.layers import register_layer

from .backend import BREVITAS
from .layers import BrevitasLayer, BrevitasLinear


class BrevitasConv(BrevitasLayer):
    """A convolution of any rank on Brevitas's quantizers."""

    channel_axis = 1
    is_same_padded_strided = False


class BrevitasConvTranspose(BrevitasLayer):
    """A transposed convolution of any rank on Brevitas's quantizers."""

    channel_axis = 1
    weight_axis = 1
    # Brevitas's raise, and torch.jit.trace reads all properties.
    per_elem_ops = None

    @property
    def channelwise_separable(self) -> bool:
        return self.groups == self.out_channels

    def forward(self,
                x: Tensor | QuantTensor,
                output_size: list[int] | None = None) -> Tensor:
        whole = whole_call(self, (x, output_size), {})
        if whole is not None:
            return whole
        self._output_size = output_size
        return self.forward_impl(x)


@register_layer(nn.Conv1d, BREVITAS.name)
class BrevitasConv1d(BrevitasConv, QuantConv1d):
    """``brevitas.nn.QuantConv1d`` in FPQ."""


@register_layer(nn.Conv2d, BREVITAS.name)
class BrevitasConv2d(BrevitasConv, QuantConv2d):
    """``brevitas.nn.QuantConv2d`` in FPQ."""


@register_layer(nn.Conv3d, BREVITAS.name)
class BrevitasConv3d(BrevitasConv, QuantConv3d):
    """``brevitas.nn.QuantConv3d`` in FPQ."""


@register_layer(nn.ConvTranspose1d, BREVITAS.name)
class BrevitasConvTranspose1d(BrevitasConvTranspose, QuantConvTranspose1d):
    """``brevitas.nn.QuantConvTranspose1d`` in FPQ."""


@register_layer(nn.ConvTranspose2d, BREVITAS.name)
class BrevitasConvTranspose2d(BrevitasConvTranspose, QuantConvTranspose2d):
    """``brevitas.nn.QuantConvTranspose2d`` in FPQ."""


@register_layer(nn.ConvTranspose3d, BREVITAS.name)
class BrevitasConvTranspose3d(BrevitasConvTranspose, QuantConvTranspose3d):
    """``brevitas.nn.QuantConvTranspose3d`` in FPQ."""


if find_spec('mmcv') is not None:
    from mmcv.cnn.bricks import wrappers

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
