"""Brevitas's convolutions as FPQ's; maps are (N, C, ...)."""

from __future__ import annotations

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

from fpq_plugin import register_layer

from .backend import BREVITAS
from .layers import BrevitasLayer


class BrevitasConv(BrevitasLayer):
    """A convolution of any rank on Brevitas's quantizers."""

    channel_axis = 1
    is_same_padded_strided = False


class BrevitasConvTranspose(BrevitasLayer):
    """A transposed convolution of any rank on Brevitas's quantizers."""

    channel_axis = 1
    weight_axis = 1

    def forward(self,
                x: Tensor | QuantTensor,
                output_size: list[int] | None = None) -> Tensor:
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
