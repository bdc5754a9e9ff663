"""Step, zero point and bit width in the shapes of an ``IntQuantTensor``."""

from __future__ import annotations

from torch import Tensor

from fpq_plugin import BaseFakeQuantize

from .stock import StockQuantizer


def metadata(quantizer: BaseFakeQuantize | StockQuantizer,
             x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a Brevitas tensor quantizer returns beside the value.

    Args:
        quantizer (BaseFakeQuantize | StockQuantizer): The quantizer of ``x``.
        x (Tensor): What it quantizes.

    Returns:
        tuple: Step, in units of ``x``, and zero point, both detached and
        broadcasting to ``x``; bit width, a scalar.
    """
    if isinstance(quantizer, StockQuantizer):
        return quantizer.metadata()
    shape: list[int] = []
    if quantizer.is_per_channel:
        shape = [1] * x.dim()
        shape[quantizer.ch_axis] = -1
    step = quantizer.step().reshape(shape)
    return (step, quantizer.zero_point.to(step).reshape(shape),
            quantizer.bits.to(step))
