"""What every fake quantizer of FPQ's own is: range, state, calibration."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from .._compat.torch_ao import FakeQuantizeBase
from .fake_quantize_function import STEP_FLOOR, fake_quantize
from .grid import (
    MAX_BITS,
    OBSERVERS,
    Grid,
    Stage,
    fill_zeros,
    integer_range,
    mse_range,
)
from .quantizer import Quantizer, lasting, stepless


class BaseFakeQuantize(Quantizer, FakeQuantizeBase):
    """A fake quantizer with one step per tensor or per channel.

    Step and zero point come from the range observed in calibration. ``scale``
    and ``zero_point`` join the ``state_dict``, at their final shape from
    construction if ``num_channels`` is given.

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
        observer (str): What a tensor's range is in calibration: 'min_max',
            the paper's (4) and (5), or 'mse', the share of it that is
            quantized with the least mean squared error, which 2-bit
            activations need in nets that min_max makes diverge. Defaults to
            'min_max'.
        factory_kwargs (dict, optional): ``device`` and ``dtype`` that
            torch.ao's QAT modules hand to a weight's fake quantizer.
            Defaults to None.
        narrow_range (bool): Whether signed integers leave the lowest out and
            are ``+-(2^(q-1) - 1)``, as engines like weights. Defaults to
            False.

    Attributes:
        integer_zero_point (bool): Whether the outputs are multiples of the
            step, so that integer formats can hold them. Defaults to True.

    Raises:
        ValueError: If ``bits`` is not an integer of 2 to 8,
            ``num_channels`` is not positive, ``observer`` unknown, or
            ``narrow_range`` asked for unsigned integers.
    """

    integer_zero_point = True
    # What torch.ao's graph modes read of an observer.
    eps = STEP_FLOOR
    is_dynamic = False

    def __init__(self,
                 bits: int = 8,
                 symmetric: bool = False,
                 signed: bool | None = None,
                 per_channel: bool = False,
                 ch_axis: int = 0,
                 num_channels: int | None = None,
                 observer: str = 'min_max',
                 factory_kwargs: dict | None = None,
                 narrow_range: bool = False) -> None:
        device = (factory_kwargs or {}).get('device')
        super().__init__(bits, device)
        if num_channels is not None and num_channels < 1:
            raise ValueError(f'num_channels must be positive, got '
                             f'{num_channels}')
        if observer not in OBSERVERS:
            raise ValueError(f'observer must be one of {OBSERVERS}, got '
                             f'{observer!r}')
        self.observer = observer
        self.symmetric = symmetric
        self.signed = symmetric if signed is None else signed
        self.is_per_channel = per_channel
        self.ch_axis = ch_axis if per_channel else -1
        self.narrow_range = narrow_range
        self.quant_min, self.quant_max = integer_range(bits, self.signed,
                                                       narrow_range)
        self.dtype = torch.qint8 if self.signed else torch.quint8
        kind = 'channel' if per_channel else 'tensor'
        self.qscheme = getattr(
            torch, f'per_{kind}_{"symmetric" if symmetric else "affine"}')

        size = (num_channels or 1) if per_channel else 1
        self._final_shape = not per_channel or num_channels is not None
        self._make_scale(torch.ones(size, device=device))
        self.register_buffer(
            'zero_point', torch.zeros(size, dtype=torch.int32, device=device))
        for name, value in (('min_val', torch.inf), ('max_val', -torch.inf)):
            self.register_buffer(
                name,
                torch.full((size, ), value, device=device),
                persistent=False)
        for name in ('fake_quant_enabled', 'observer_enabled'):
            self.register_buffer(name, getattr(self, name), persistent=False)
        self.observer_enabled.zero_()

    @abstractmethod
    def _make_scale(self, scale: Tensor) -> None:
        """Register ``scale`` (ones, final shape) as parameter or buffer."""

    @lasting
    def observe(self, x: Tensor) -> None:
        """Widen the observed range by ``x``'s, as ``observer`` takes it."""
        if x.numel() == 0:
            return
        x = x.detach().float()
        if self.is_per_channel:
            self._fix_channels(x.shape[self.ch_axis])
            x = x.movedim(self.ch_axis, 0).reshape(x.shape[self.ch_axis], -1)
        else:
            x = x.reshape(1, -1)
        low, high = self._range(x)
        torch.minimum(self.min_val, low, out=self.min_val)
        torch.maximum(self.max_val, high, out=self.max_val)

    def _range(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest value to hold of each row, each (C,)."""
        low, high = rows.aminmax(dim=1)
        if self.observer == 'mse':
            return mse_range(low, high, rows, self._quantize_rows)
        return low, high

    def _quantize_rows(self, rows: Tensor, low: Tensor,
                       high: Tensor) -> Tensor:
        """``rows`` (C, n) in the grids that hold [low, high], each (C,)."""
        step, zero = (each[:, None] for each in self._affine(low, high))
        integers = torch.round(rows / step) + zero
        return (integers.clamp(self.quant_min, self.quant_max) - zero) * step

    def _affine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Step and zero point (float) of the grids that hold [low, high]."""
        low, high = low.clamp_max(0), high.clamp_min(0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high if self.signed else torch.zeros_like(high)
        step = (high - low) / (self.quant_max - self.quant_min)
        step = torch.where(step > 0, step, torch.ones_like(step))
        if self.symmetric:
            return step, torch.zeros_like(step)
        zero = torch.round(self.quant_max - high / step)
        return step, zero.clamp(self.quant_min, self.quant_max)

    def was_observed(self) -> bool:
        """Whether :meth:`observe` has seen a tensor since the last reset."""
        return not bool((self.min_val > self.max_val).any())

    @lasting
    def initialize(self) -> None:
        """Set step and zero point from the observed range.

        Asymmetric: ``s = (xmax - xmin) / (2^q - 1)`` (4) and ``z =
        round(qmax - xmax / s)`` (5), the range widened to hold 0 so that a
        zero, as a convolution's padding is, stays exact. Symmetric signed:
        (4) with ``xmax = -xmin = max|x|``, z = 0. A channel that is all zero
        gets the mean range of the others; if all are, the quantizer waits.

        Raises:
            ValueError: If nothing, or something non-finite, was observed, or
                a range wider than float32 holds.
        """
        low, high = self.min_val, self.max_val
        ranges = fill_zeros(low, high)
        step, zero = self._affine(*(ranges or (low, high)))
        if not all(each.isfinite().all() for each in (low, high, step)):
            raise ValueError(
                f'the observed range is [{low.min():g}, {high.max():g}]' + (
                    ', wider than float32 holds' if low.isfinite().all()
                    and high.isfinite().all() else ''))
        if ranges is not None:
            self._tell_of_negative(high)
            self._tell_of_tiny(step)
            self.zero_point.copy_(zero)
            self._set_step(step)
        self._become(Stage.WAITING if ranges is None else Stage.READY)
        self.reset_observer()

    def _tell_of_negative(self, high: Tensor) -> None:
        if self.symmetric and not self.signed and (high < 0).any():
            warnings.warn('all observed values are negative and will become '
                          '0, the least value of symmetric=True with '
                          'signed=False: leave signed out', stacklevel=3)

    def _tell_of_tiny(self, step: Tensor) -> None:
        if (step < STEP_FLOOR).all():
            warnings.warn(
                f'the observed values ask for a step of {step.max():g} at '
                f'most, and no step is below {STEP_FLOOR:.2g}: few levels are '
                'left. Scale the inputs, or the layer before, up',
                stacklevel=3)

    @lasting
    def share_observed(self) -> None:
        both = torch.stack([-self.min_val, self.max_val])
        all_reduce(both, 'max')
        torch.neg(both[0], out=self.min_val)
        self.max_val.copy_(both[1])

    def _set_step(self, step: Tensor) -> None:
        """Start from ``step``, with ``zero_point`` set already."""
        self.scale.copy_(step)

    def reset_observer(self) -> None:
        """Forget the observed range."""
        self.min_val.fill_(torch.inf)
        self.max_val.fill_(-torch.inf)

    def calculate_qparams(self, **kwargs) -> tuple[Tensor, Tensor]:
        """Current step and zero point, as torch.ao's ``convert`` asks.

        That clips at 8 bits, whatever these are: a warning says so.

        Raises:
            NotImplementedError: As :meth:`grid`.
        """
        grid = self.grid()
        if self.num_bits < MAX_BITS:
            warnings.warn(
                f"{type(self).__name__} has {self.num_bits} bits, and "
                "torch.ao's convert clips at 8 bits: its model answers "
                'otherwise. fpq_plugin.export writes these', stacklevel=2)
        return grid.step, self.zero_point.clone()

    @property
    def activation_post_process(self) -> BaseFakeQuantize:
        """The observer that torch.ao's graph mode asks for: this itself."""
        return self

    @activation_post_process.deleter
    def activation_post_process(self) -> None:
        """torch.ao's convert takes observers off; this one stays."""

    def grid(self) -> Grid:
        """The integers that its values stand for.

        Raises:
            NotImplementedError: If not :attr:`integer_zero_point`.
        """
        if not self.integer_zero_point:
            raise NotImplementedError(
                f'{type(self).__name__} has no integer zero point, so no '
                'integers stand for its values; LSQFakeQuantize has')
        return Grid(self.step(), self.zero_point, self.quant_min,
                    self.quant_max,
                    self.ch_axis if self.is_per_channel else None)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switch fake quantization on or off."""
        super().enable_fake_quant(enabled)
        self.fake_quant_enabled.fill_(int(enabled))

    # Those of torch.ao are compiled by torch.jit.trace, with what they call.
    def disable_fake_quant(self) -> None:
        """Switch fake quantization off."""
        self.enable_fake_quant(False)

    def disable_observer(self) -> None:
        """Switch the observer off; its range becomes the step."""
        self.enable_observer(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Switch the observer on, or off; off, its range becomes the step."""
        super().enable_observer(enabled)
        if enabled:
            self._stage = Stage.OBSERVING
        elif self.stage is Stage.OBSERVING:
            if self.was_observed():
                self.initialize()
            self.read_stage()

    def extra_repr(self) -> str:
        kind = 'per channel' if self.is_per_channel else 'per tensor'
        return (f'bits={self.num_bits}, range=[{self.quant_min}, '
                f'{self.quant_max}], {kind}, symmetric={self.symmetric}')

    def _fix_channels(self, channels: int) -> None:
        if self._final_shape:
            return
        # `.data` keeps the parameter that an optimizer may hold already.
        for tensor in (self.min_val, self.max_val, *self._per_channel()):
            tensor.data = tensor.data[:1].repeat(channels)
        self._final_shape = True

    def quantize(self,
                 x: Tensor,
                 scale: Tensor,
                 grad_factor: float = 1.0) -> Tensor:
        """Quantize and dequantize ``x`` by equation (3), in this grid.

        Args:
            x (Tensor): Input of any shape.
            scale (Tensor): Raw scale, (1,) or (C,); the step is its absolute
                value, 1.2e-7 at least. It gets LSQ's gradient.
            grad_factor (float): Factor on that gradient. Defaults to 1.0.

        Returns:
            Tensor: ``x_hat`` of ``x``'s shape and dtype.
        """
        return fake_quantize(
            x, scale, self.zero_point, self.quant_min, self.quant_max,
            self.ch_axis if self.is_per_channel else None, grad_factor)

    def _per_channel(self) -> tuple[Tensor, ...]:
        """The state with one element per channel."""
        return self.scale, self.zero_point

    def _prepare_for(self, state: Mapping[str, Tensor], prefix: str) -> str:
        stage, zero_point = (state.get(prefix + name)
                             for name in ('initialized', 'zero_point'))
        if stage is not None and int(stage) == Stage.READY:
            own = {id(tensor) for tensor in self._per_channel()}
            for name, tensor in (*self.named_parameters(recurse=False),
                                 *self.named_buffers(recurse=False)):
                if id(tensor) in own and prefix + name not in state and (
                        name not in self._non_persistent_buffers_set):
                    return stepless(prefix + name)
            if self.symmetric and zero_point is not None and (
                    bool(zero_point.any())):
                return (f'{prefix[:-1]}: asymmetric in the state, symmetric '
                        'in the model')
        if self.is_per_channel and zero_point is not None:
            self._fix_channels(zero_point.numel())
        return ''
