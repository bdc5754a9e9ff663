"""PACT's learned clip for features, DoReFa's squeezed weights."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..options import is_number
from .base_fake_quantize import BaseFakeQuantize
from .fake_quantize_function import positive_step


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
        return self.quantize(clipped, step.detach()).to(x.dtype)


@MODELS.register_module()
class DoReFaFakeQuantize(BaseFakeQuantize):
    """DoReFa-Net's weights (Zhou et al., arXiv 1606.06160).

    ``w_hat = M (2 Q(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1)`` with Q the
    rounding to ``2^q`` values in [0, 1]. DoReFa has M = 1, which multiplies a
    layer without a norm after it; here M = ``max|w|``, a constant to the
    gradient, so that a trained layer keeps its scale. Maxima are of the
    tensor or, with ``per_channel``, of each channel. The straight-through
    gradient goes through tanh and its maximum.

    The step, ``2 M / (2^q - 1)``, follows the weights: nothing is learned.
    The outputs are odd multiples of half of it, so there is no exact 0 and
    no integer zero point.

    Args:
        bits (int): Bits, 2 to 8. Defaults to 8.
        per_channel (bool): Whether each channel has a step of its own.
            Defaults to False.
        ch_axis (int): Channel axis, if ``per_channel``. Defaults to 0.
        num_channels (int, optional): As for :class:`BaseFakeQuantize`.
            Defaults to None.
        factory_kwargs (dict, optional): As for :class:`BaseFakeQuantize`.
            Defaults to None.

    Raises:
        ValueError: As :class:`BaseFakeQuantize`.

    Examples:
        >>> import torch
        >>> from fpq_plugin import DoReFaFakeQuantize
        >>> quantizer = DoReFaFakeQuantize(bits=2)
        >>> quantizer(torch.tensor([-3.0, -0.3, 0.1, 2.0])).tolist()
        [-3.0, -1.0, 1.0, 3.0]
    """

    integer_zero_point = False
    for_weights_only = True

    def __init__(self,
                 bits: int = 8,
                 per_channel: bool = False,
                 ch_axis: int = 0,
                 num_channels: int | None = None,
                 factory_kwargs: dict | None = None) -> None:
        super().__init__(
            bits,
            symmetric=True,
            per_channel=per_channel,
            ch_axis=ch_axis,
            num_channels=num_channels,
            factory_kwargs=factory_kwargs)

    def _make_scale(self, scale: Tensor) -> None:
        self.register_buffer('scale', scale)

    def step(self) -> Tensor:
        return positive_step(self.scale)

    def fake_quantize(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x
        others = [
            d for d in range(x.dim())
            if not self.is_per_channel or d != self.ch_axis % x.dim()
        ]
        wide = x.to(torch.promote_types(x.dtype, self.scale.dtype))
        most = wide.detach().abs().amax(others, keepdim=True)
        squeezed = torch.tanh(wide)
        peak = squeezed.abs().amax(others, keepdim=True)
        # M / max|tanh| is 1 where both are 0, and lets the gradient through.
        zero = most == 0
        squeezed = squeezed * most.masked_fill(zero, 1) / torch.where(
            zero, 1, peak)
        step = positive_step(2 * most / (self.quant_max - self.quant_min))
        if self.training:
            with torch.no_grad():
                self.scale.copy_(step.reshape(-1))
        half = step / 2
        out = self.quantize(squeezed - half, step.reshape(-1)) + half
        return out.to(x.dtype)
