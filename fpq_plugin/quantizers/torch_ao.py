"""torch.ao's own fake quantizer and observers, as FPQ's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.registry import MODELS
from torch import Tensor

from .._compat.torch_ao import require_torch_ao
from .._compat.tracing import is_exporting
from .grid import Grid, Stage, fill_zeros, integer_range
from .quantizer import Quantizer, lasting, stepless


@MODELS.register_module()
class TorchAOFakeQuantize(Quantizer):
    """``torch.ao.quantization.FakeQuantize`` with a moving-average observer.

    Nothing is learned: in training step and zero point follow the moving
    average of the tensors' minima and maxima, in distributed training those
    of all processes' features; in eval mode they stay. torch's module is the
    child ``fake``, and its state is that of torch's.

    Args:
        bits (int): Bits, 2 to 8. Defaults to 8.
        symmetric (bool): Whether the zero point is 0 and integers are signed.
            Defaults to False.
        per_channel (bool): Whether each channel has a step of its own.
            Defaults to False.
        ch_axis (int): Channel axis, if ``per_channel``. Defaults to 0.
        num_channels (int, optional): Number of channels; needed with
            ``per_channel``. Defaults to None.
        averaging_constant (float): Weight of a new tensor's range in the
            average. Defaults to 0.01.
        narrow_range (bool): As for :class:`BaseFakeQuantize`. Defaults to
            False.

    Raises:
        ValueError: If ``bits`` is not an integer of 2 to 8,
            ``averaging_constant`` is not in (0, 1], or ``narrow_range`` asked
            for without ``symmetric``.
        ImportError: If this torch has no ``torch.ao.quantization``.

    Examples:
        >>> import torch
        >>> from fpq_plugin import TorchAOFakeQuantize
        >>> quantizer = TorchAOFakeQuantize(bits=4)
        >>> quantizer(torch.linspace(-1, 2, 16)).unique().numel()
        16
    """

    def __init__(self,
                 bits: int = 8,
                 symmetric: bool = False,
                 per_channel: bool = False,
                 ch_axis: int = 0,
                 num_channels: int | None = None,
                 averaging_constant: float = 0.01,
                 narrow_range: bool = False) -> None:
        require_torch_ao(
            type(self).__name__, 'leave type out for the default one, or take '
            "another one, such as 'LSQFakeQuantize'")
        from torch.ao import quantization as ao

        super().__init__(bits)
        if not 0 < averaging_constant <= 1:
            raise ValueError('averaging_constant must be in (0, 1], got '
                             f'{averaging_constant!r}')
        self.symmetric = self.signed = symmetric
        self.is_per_channel = per_channel
        self.ch_axis = ch_axis if per_channel else -1
        self.narrow_range = narrow_range
        self.quant_min, self.quant_max = integer_range(bits, symmetric,
                                                       narrow_range)
        kind = 'channel' if per_channel else 'tensor'
        scheme = 'symmetric' if symmetric else 'affine'
        options = dict(ch_axis=ch_axis) if per_channel else {}
        self.fake = ao.FakeQuantize(
            ao.MovingAveragePerChannelMinMaxObserver
            if per_channel else ao.MovingAverageMinMaxObserver,
            self.quant_min,
            self.quant_max,
            dtype=torch.qint8 if symmetric else torch.quint8,
            qscheme=getattr(torch, f'per_{kind}_{scheme}'),
            averaging_constant=averaging_constant,
            **options)
        self._shape = (num_channels or 1, ) if per_channel else ()
        if per_channel:
            # torch sizes them at the first tensor; ranks must agree before.
            self.fake.scale = torch.ones(self._shape)
            self.fake.zero_point = torch.zeros(
                self._shape, dtype=self.fake.zero_point.dtype)
        self.reset_observer()

    @property
    def scale(self) -> Tensor:
        """torch's scale, shape (1,) or (C,)."""
        return self.fake.scale

    @property
    def zero_point(self) -> Tensor:
        """torch's zero point, of ``scale``'s shape."""
        return self.fake.zero_point

    def step(self) -> Tensor:
        return self.fake.scale.detach()

    @lasting
    def observe(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        observer = self.fake.activation_post_process
        if self.is_per_channel and not self.was_observed():
            # torch's sign of a first tensor.
            observer.min_val = observer.min_val.new_empty(0)
            observer.max_val = observer.max_val.new_empty(0)
        observer(x.detach().float())

    def was_observed(self) -> bool:
        observer = self.fake.activation_post_process
        return not bool((observer.min_val > observer.max_val).any())

    @lasting
    def reset_observer(self) -> None:
        observer = self.fake.activation_post_process
        device = self.fake.scale.device
        for name, value in (('min_val', torch.inf), ('max_val', -torch.inf)):
            setattr(observer, name,
                    torch.full(self._shape, value, device=device))

    @lasting
    def initialize(self) -> None:
        observer = self.fake.activation_post_process
        if not (torch.isfinite(observer.min_val).all()
                and torch.isfinite(observer.max_val).all()):
            raise ValueError(
                'the observed range is '
                f'[{observer.min_val.min():g}, {observer.max_val.max():g}]')
        ranges = fill_zeros(observer.min_val, observer.max_val)
        if ranges is None:
            self._become(Stage.WAITING)
            self.reset_observer()
            return
        observer.min_val, observer.max_val = ranges
        self._set_step()
        self._become(Stage.READY)

    def _set_step(self) -> None:
        """Take step and zero point from the observer's range."""
        scale, zero_point = self.fake.calculate_qparams()
        self.fake.scale.resize_(scale.shape).copy_(scale)
        self.fake.zero_point.resize_(zero_point.shape).copy_(zero_point)

    @lasting
    def share_observed(self) -> None:
        observer = self.fake.activation_post_process
        observer.min_val, observer.max_val = _over_processes(
            observer.min_val, observer.max_val)

    def train(self, mode: bool = True) -> TorchAOFakeQuantize:
        """Follow the tensors in training mode alone."""
        super().train(mode)
        self.fake.enable_observer(mode)
        return self

    def fake_quantize(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if is_exporting():
            return self._for_graph(wide).to(x.dtype)
        if not (self.over_batch and get_world_size() > 1
                and self.fake.observer_enabled[0] == 1):
            return self.fake(wide).to(x.dtype)
        self._follow_all(wide)
        self.fake.enable_observer(False)
        try:
            return self.fake(wide).to(x.dtype)
        finally:
            self.fake.enable_observer()

    @lasting
    def _follow_all(self, x: Tensor) -> None:
        """Move on as torch does, by the range of all processes' tensors."""
        axis = self.ch_axis % x.dim() if self.is_per_channel else None
        others = [d for d in range(x.dim()) if d != axis]
        if x.numel():
            low, high = x.float().amin(others), x.float().amax(others)
        else:
            low, high = (x.new_full(self._shape, value, dtype=torch.float32)
                         for value in (torch.inf, -torch.inf))
        ends = torch.stack(_over_processes(low, high))
        if (ends[0] > ends[1]).all():  # no process had a value
            return
        if axis == 0:
            ends = ends.T
        elif axis is not None:
            ends = ends.view(2, *(low.numel() if d == axis else 1
                                  for d in range(1, x.dim())))
        self.fake.activation_post_process(ends)
        self._set_step()

    def _for_graph(self, x: Tensor) -> Tensor:
        """torch's arithmetic without its switches, which no graph holds."""
        step, zero_point = (self.along_channels(each, x)
                            for each in (self.scale, self.zero_point))
        integers = torch.round(x * (1 / step))
        return integers.clamp(self.quant_min - zero_point,
                              self.quant_max - zero_point) * step

    def _prepare_for(self, state: Mapping[str, Tensor], prefix: str) -> str:
        stage, key = state.get(prefix + 'initialized'), f'{prefix}fake.scale'
        return stepless(key) if key not in state and stage is not None and (
            int(stage) == Stage.READY) else ''

    def grid(self) -> Grid:
        return Grid(self.step(), self.zero_point, self.quant_min,
                    self.quant_max,
                    self.ch_axis if self.is_per_channel else None)

    def extra_repr(self) -> str:
        kind = 'per channel' if self.is_per_channel else 'per tensor'
        return (f'bits={self.num_bits}, range=[{self.quant_min}, '
                f'{self.quant_max}], {kind}, symmetric={self.symmetric}')


def _over_processes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least of all processes' ``low`` and the highest ``high``."""
    both = torch.stack([-low, high])
    all_reduce(both, 'max')
    return -both[0], both[1]
