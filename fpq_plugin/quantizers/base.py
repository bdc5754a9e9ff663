"""What every fake quantizer of FPQ is: range, state, calibration."""

from __future__ import annotations

from abc import abstractmethod

import torch
from mmengine.dist import get_world_size
from torch import Tensor
from torch.ao.quantization import FakeQuantizeBase

MIN_BITS, MAX_BITS = 2, 8


class BaseFakeQuantize(FakeQuantizeBase):
    """A fake quantizer with one step per tensor or per channel.

    Life: built uninitialised; *calibrated* (observer on, then
    :meth:`initialize` from the observed range); then it fake quantizes. One
    that is used in training before it was calibrated initialises itself from
    that first tensor, as LSQ does; in eval mode or in distributed training
    that is an error, since ranks would disagree without a word.

    ``scale``, ``zero_point``, ``initialized`` and ``bits`` are part of the
    ``state_dict``, at their final shape from construction if
    ``num_channels`` is given. Loading a state of other bits is refused.

    Args:
        bits (int): Bits, 2 to 8. Defaults to 8.
        symmetric (bool): Whether the zero point is 0. Defaults to False.
        signed (bool, optional): Whether integers are in ``[-2^(q-1),
            2^(q-1)-1]`` instead of ``[0, 2^q-1]``. Defaults to None, which
            is ``symmetric``'s value.
        per_channel (bool): Whether each channel has a step of its own.
            Defaults to False.
        ch_axis (int): Channel axis, if ``per_channel``. Defaults to 0.
        num_channels (int, optional): Number of channels, if ``per_channel``.
            Defaults to None: taken from the first tensor (the torch.ao
            ``QConfig`` case, where the constructor cannot know it).
        factory_kwargs (dict, optional): ``device`` and ``dtype`` that
            torch.ao's QAT modules hand to a weight's fake quantizer.
            Defaults to None.

    Attributes:
        over_batch (bool): Whether the tensors hold a rank's share of the
            batch, as features do and weights do not. Defaults to False.

    Raises:
        ValueError: If ``bits`` is not an integer of 2 to 8, or
            ``num_channels`` is not positive.
    """

    over_batch = False

    def __init__(self,
                 bits: int = 8,
                 symmetric: bool = False,
                 signed: bool | None = None,
                 per_channel: bool = False,
                 ch_axis: int = 0,
                 num_channels: int | None = None,
                 factory_kwargs: dict | None = None) -> None:
        super().__init__()
        check_bits(bits)
        if num_channels is not None and num_channels < 1:
            raise ValueError(f'num_channels must be positive, got '
                             f'{num_channels}')
        self.num_bits = bits
        self.symmetric = symmetric
        self.signed = symmetric if signed is None else signed
        self.is_per_channel = per_channel
        self.ch_axis = ch_axis if per_channel else -1
        self.quant_min = -2**(bits - 1) if self.signed else 0
        self.quant_max = self.quant_min + 2**bits - 1
        self.dtype = torch.qint8 if self.signed else torch.quint8
        kind = 'channel' if per_channel else 'tensor'
        self.qscheme = getattr(
            torch, f'per_{kind}_{"symmetric" if symmetric else "affine"}')

        device = (factory_kwargs or {}).get('device')
        size = (num_channels or 1) if per_channel else 1
        self._final_shape = not per_channel or num_channels is not None
        self._make_scale(torch.ones(size, device=device))
        self.register_buffer(
            'zero_point', torch.zeros(size, dtype=torch.int32, device=device))
        self.register_buffer(
            'initialized', torch.tensor(0, dtype=torch.uint8, device=device))
        self.register_buffer(
            'bits', torch.tensor(bits, dtype=torch.uint8, device=device))
        for name, value in (('min_val', torch.inf), ('max_val', -torch.inf)):
            self.register_buffer(
                name,
                torch.full((size, ), value, device=device),
                persistent=False)
        # Run-time switches: Python mirrors spare a device sync per call.
        self._fake_quant_on = True
        self._observing = False
        self._ready = False
        for name in ('fake_quant_enabled', 'observer_enabled'):
            self.register_buffer(name, getattr(self, name), persistent=False)
        self.observer_enabled.zero_()

    @abstractmethod
    def _make_scale(self, scale: Tensor) -> None:
        """Register ``scale`` (ones, final shape) as parameter or buffer."""

    @abstractmethod
    def step(self) -> Tensor:
        """The current step, positive, detached, shape (1,) or (C,)."""

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """Fake quantize ``x`` of any shape with the current step."""

    def forward(self, x: Tensor) -> Tensor:
        """Observe and/or fake quantize ``x``; shape and dtype are kept.

        Raises:
            RuntimeError: If not calibrated, in eval mode or in distributed
                training.
        """
        if self._observing:
            self.observe(x)
        if not self._fake_quant_on:
            return x
        if not self.is_initialized():
            self._initialize_from(x)
        return self.fake_quantize(x)

    def is_initialized(self) -> bool:
        """Whether the step was calibrated, learned or loaded."""
        if not self._ready:
            self._ready = bool(self.initialized)
        return self._ready

    def has_step(self) -> bool:
        """Whether it quantizes: switched on and initialised."""
        return self._fake_quant_on and self.is_initialized()

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Widen the observed range by ``x``'s minimum and maximum."""
        x = x.detach().float()
        if self.is_per_channel:
            self._fix_channels(x.shape[self.ch_axis])
            x = x.movedim(self.ch_axis, 0).reshape(x.shape[self.ch_axis], -1)
            low, high = x.aminmax(dim=1)
        else:
            low, high = (value.reshape(1) for value in x.aminmax())
        torch.minimum(self.min_val, low, out=self.min_val)
        torch.maximum(self.max_val, high, out=self.max_val)

    def was_observed(self) -> bool:
        """Whether :meth:`observe` has seen a tensor since the last reset."""
        return not bool((self.min_val > self.max_val).any())

    @torch.no_grad()
    def initialize(self) -> None:
        """Set step and zero point from the observed range.

        Asymmetric: ``s = (xmax - xmin) / (2^q - 1)`` (4) and ``z =
        round(qmax - xmax / s)`` (5), the range widened to hold 0 so that a
        zero, as a convolution's padding is, stays exact. Symmetric signed:
        (4) with ``xmax = -xmin = max|x|``, z = 0. A range of width zero gets
        the step 1, which keeps later values inside the clipping range.

        Raises:
            ValueError: If nothing, or something non-finite, was observed.
        """
        if not (torch.isfinite(self.min_val) &
                torch.isfinite(self.max_val)).all():
            raise ValueError(
                'the observed range is '
                f'[{self.min_val.min():g}, {self.max_val.max():g}]')
        low, high = self.min_val.clamp_max(0), self.max_val.clamp_min(0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high if self.signed else torch.zeros_like(high)
        step = (high - low) / (self.quant_max - self.quant_min)
        step = torch.where(step > 0, step, torch.ones_like(step))
        if self.symmetric:
            self.zero_point.zero_()
        else:
            zero = torch.round(self.quant_max - high / step)
            self.zero_point.copy_(zero.clamp(self.quant_min, self.quant_max))
        self.scale.copy_(step)
        self.initialized.fill_(1)
        self._ready = True
        self.reset_observer()

    def reset_observer(self) -> None:
        """Forget the observed range."""
        self.min_val.fill_(torch.inf)
        self.max_val.fill_(-torch.inf)

    def calculate_qparams(self, **kwargs) -> tuple[Tensor, Tensor]:
        """Current step and zero point, as torch.ao's ``convert`` asks."""
        return self.step(), self.zero_point.clone()

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switch fake quantization on or off."""
        super().enable_fake_quant(enabled)
        self._fake_quant_on = bool(enabled)

    def enable_observer(self, enabled: bool = True) -> None:
        """Switch the observer on, or off; off, its range becomes the step."""
        super().enable_observer(enabled)
        if self._observing and not enabled and self.was_observed():
            self.initialize()
        self._observing = bool(enabled)

    def extra_repr(self) -> str:
        kind = 'per channel' if self.is_per_channel else 'per tensor'
        return (f'bits={self.num_bits}, range=[{self.quant_min}, '
                f'{self.quant_max}], {kind}, symmetric={self.symmetric}')

    def _initialize_from(self, x: Tensor) -> None:
        if not self.training or get_world_size() > 1:
            raise RuntimeError(
                f'{type(self).__name__} has no step yet: call '
                'fpq_plugin.calibrate(model, batches), or load a checkpoint '
                'trained with FPQ, before evaluation or distributed training')
        self.observe(x)
        self.initialize()

    def _fix_channels(self, channels: int) -> None:
        if self._final_shape:
            return
        # `.data` keeps the parameter that an optimizer may hold already.
        for tensor in (self.scale, self.zero_point, self.min_val,
                       self.max_val):
            tensor.data = tensor.data[:1].repeat(channels)
        self._final_shape = True

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        bits = state_dict.get(prefix + 'bits')
        if bits is not None and int(bits) != self.num_bits:
            error_msgs.append(f'{prefix[:-1]}: the state has {int(bits)} bits '
                              f'and this quantizer {self.num_bits}')
            return
        scale = state_dict.get(prefix + 'scale')
        if self.is_per_channel and scale is not None:
            self._fix_channels(scale.numel())
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        self._ready = False


def check_bits(bits: int) -> None:
    """Refuse ``bits`` that no quantizer of FPQ has.

    Raises:
        ValueError: If ``bits`` is not an integer of 2 to 8.
    """
    if (isinstance(bits, bool) or not isinstance(bits, int)
            or not MIN_BITS <= bits <= MAX_BITS):
        raise ValueError(f'bits must be an integer of {MIN_BITS} to '
                         f'{MAX_BITS}, got {bits!r}')
