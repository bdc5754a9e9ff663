"""PACT: the clipping level is learned by gradient, with weight decay."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..numeric import is_number
from .base import BaseFakeQuantize
from .fake_quantize_function import fake_quantize, positive_step


@MODELS.register_module()
class PACTFakeQuantize(BaseFakeQuantize):
    """Parameterized clipping activation (Choi et al., arXiv 1805.06085).

    The parameter ``clip`` = alpha is the width of the range, ``s = alpha /
    (2^q - 1)``: after a ReLU, where z is 0, ``x_hat = round(clip(x, 0,
    alpha) / s) s``. Its straight-through gradient is 1 where ``x >= alpha``
    and 0 below, without LSQ's rounding term and factor. With another zero
    point, which stays as calibrated, the range is ``[-z s, (qmax - z) s]``
    (for qmin 0) and each bound passes its share of the gradient to alpha.

    PACT shrinks alpha by weight decay: ``clip`` is in an optimizer group of
    its own with ``weight_decay``.

    Args:
        weight_decay (float): Weight decay of ``clip``. Defaults to 5e-4,
            what the recipes have on the weights.
        **kwargs: As for :class:`BaseFakeQuantize`.

    Raises:
        ValueError: As :class:`BaseFakeQuantize`, or if ``weight_decay`` is
            negative.

    Examples:
        >>> import torch
        >>> from fpq_plugin import PACTFakeQuantize
        >>> quantizer = PACTFakeQuantize(bits=2)
        >>> quantizer(torch.tensor([0.0, 0.9, 3.0])).tolist()
        [0.0, 1.0, 3.0]
    """

    def __init__(self, *args, weight_decay: float = 5e-4, **kwargs) -> None:
        if not is_number(weight_decay, 0):
            raise ValueError('weight_decay must be a number >= 0, got '
                             f'{weight_decay!r}')
        super().__init__(*args, **kwargs)
        self.weight_decay = {'clip': float(weight_decay)}

    def _make_scale(self, scale: Tensor) -> None:
        self.clip = nn.Parameter(scale)

    def _set_step(self, step: Tensor) -> None:
        self.clip.copy_(step * self._levels())

    def _levels(self) -> int:
        return self.quant_max - self.quant_min

    def _per_channel(self) -> tuple[Tensor, ...]:
        return self.clip, self.zero_point

    def step(self) -> Tensor:
        return positive_step(self.clip.detach() / self._levels())

    def fake_quantize(self, x: Tensor) -> Tensor:
        step = positive_step(self.clip / self._levels())
        low = self.along_channels(
            (self.quant_min - self.zero_point) * step, x)
        high = self.along_channels(
            (self.quant_max - self.zero_point) * step, x)
        clipped = torch.clamp(
            x.to(torch.promote_types(x.dtype, step.dtype)), low, high)
        return fake_quantize(
            clipped, step.detach(), self.zero_point, self.quant_min,
            self.quant_max,
            self.ch_axis if self.is_per_channel else None).to(x.dtype)
