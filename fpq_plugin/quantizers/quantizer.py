"""The seam between FPQ and a fake quantizer of any backend."""

from __future__ import annotations

import inspect
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from .._compat.tracing import is_exporting, whole_call
from .._compat.versions import is_compiling
from .description import KEY, describe, differences
from .grid import Grid, Stage, along_channels, check_bits, weight_to_come

F = TypeVar('F', bound=Callable[..., Any])


def lasting(method: F) -> F:
    """Decorator: state that ``method`` makes outlives inference mode.

    It runs without gradient.
    """

    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return run  # type: ignore[return-value]


def _made_by(quantizer: Quantizer, x: Tensor) -> bool:
    """Whether a tensor is what :meth:`Quantizer.quantize_once` returned."""
    if is_compiling():
        return False
    maker, version = getattr(x, '_made_by', (None, 0))
    return maker is quantizer and version == x._version


class _Trainable(ABCMeta):
    """Makes its classes' parameters outside of inference mode."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False):
            return super().__call__(*args, **kwargs)


def stepless(key: str) -> str:
    """What to say of a state without the step of a calibrated quantizer."""
    return (f'{key} is missing in the state, though it was calibrated: there '
            'is no step without it')


class Quantizer(ABC, nn.Module, metaclass=_Trainable):
    """What calibration, SFP, optimizer groups and checkpoints know.

    Life (:class:`Stage`): built new; *calibrated* (:meth:`observe` on data,
    then :meth:`initialize`); then it fake quantizes. One that is used in
    training before it was calibrated initialises itself from that first
    tensor, as LSQ does; in eval mode or in distributed training that is an
    error, since ranks would disagree without a word. One that has seen only
    zeros waits, and passes its input on, until a training batch has other
    values. One that no forward reaches can be left idle
    (:meth:`leave_float`). Tensors without elements count for nothing.

    ``initialized`` (the stage) and ``bits`` are part of the ``state_dict``.
    Loading a state of other bits is refused.

    Args:
        bits (int): Bits, 2 to 8.
        device (torch.device, optional): Where the state is made. Defaults to
            None, torch's default device.

    Attributes:
        is_per_channel (bool): Whether each channel has a step of its own.
            Defaults to False.
        ch_axis (int): Channel axis, if ``is_per_channel``. Defaults to -1.
        over_batch (bool): Whether the tensors hold a rank's share of the
            batch, as features do and weights do not. Defaults to False.
        micro_batches (int): Forwards that one optimizer step sums up, with
            gradient accumulation. Defaults to 1.
        weight_decay (Mapping[str, float]): From the name of a learned
            parameter to its weight decay; 0 for those not named.
        for_weights_only (bool): Whether features must not be quantized by
            it. Defaults to False.

    Raises:
        ValueError: If ``bits`` is not an integer of 2 to 8.
    """

    is_per_channel = False
    ch_axis = -1
    over_batch = False
    micro_batches = 1
    weight_decay: Mapping[str, float] = MappingProxyType({})
    for_weights_only = False

    def __init__(self,
                 bits: int,
                 device: torch.device | None = None) -> None:
        super().__init__()
        check_bits(bits)
        self.num_bits = bits
        # Run-time switches in Python spare a device sync per call.
        self._fake_quant_on = True
        self._stage = Stage.NEW
        self.register_buffer(
            'initialized', torch.tensor(0, dtype=torch.uint8, device=device))
        self.register_buffer(
            'bits', torch.tensor(bits, dtype=torch.uint8, device=device))

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        # torch.jit.trace would compile them, whether they are used or not.
        cls.__jit_unused_properties__ = [
            name for name, member in inspect.getmembers(cls)
            if isinstance(member, property)
        ]

    @abstractmethod
    def step(self) -> Tensor:
        """The current step, positive, detached, shape (1,) or (C,)."""

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """Fake quantize ``x`` of any shape with the current step."""

    @abstractmethod
    def observe(self, x: Tensor) -> None:
        """Collect what :meth:`initialize` needs of ``x``."""

    @abstractmethod
    def was_observed(self) -> bool:
        """Whether :meth:`observe` has seen a tensor since the last reset."""

    @abstractmethod
    def reset_observer(self) -> None:
        """Forget what was observed."""

    @abstractmethod
    def initialize(self) -> None:
        """Set step and zero point from what was observed: now it is ready.

        If that was all zero it waits.

        Raises:
            ValueError: If nothing, or something non-finite, was observed.
        """

    def observe_weight(self, weight: Tensor) -> None:
        """Observe a weight; one that is all zero as what it may become."""
        self.observe(weight_to_come(weight))

    def share_observed(self) -> None:
        """Make what was observed that of all processes; a collective.

        Raises:
            RuntimeError: If the quantizer does not know how.
        """
        raise RuntimeError(
            f'{type(self).__name__} saw only zeros in calibration and cannot '
            'take its step in distributed training: it has no '
            'share_observed(). Calibrate on other data')

    def grid(self) -> Grid:
        """The integers that its values stand for, for an export.

        Raises:
            NotImplementedError: If it has none.
        """
        raise NotImplementedError(
            f'{type(self).__name__} does not tell its integers (no grid())')

    def forward(self, x: Tensor) -> Any:
        """Observe and/or fake quantize ``x``; shape and dtype are kept.

        ``torch.fx.symbolic_trace`` finds one call of this module here.

        Raises:
            RuntimeError: If not calibrated, in eval mode or in distributed
                training; or traced while it trains or observes.
            TypeError: If ``x`` is not of a floating-point type.
        """
        stage = self.stage
        whole = whole_call(self, (x, ), {})
        if whole is not None or is_exporting():
            self._refuse_trace_in_training()
        if whole is not None:
            return whole
        observing = stage is Stage.OBSERVING
        if observing:
            self._refuse_other_types(x)
            if x.numel():
                self.observe(x)
        if not self._fake_quant_on:
            return x
        if observing:  # as torch.ao does: both at once
            stage = self._stored_stage()
        if stage is Stage.IDLE:
            return x
        self._refuse_other_types(x)
        if stage is not Stage.READY:
            if stage is Stage.NEW and x.numel() and (
                    not self.training or get_world_size() > 1):
                self.require_step()
            if is_exporting():  # a graph's stand-ins have no stage to read
                return x
            if self.training:
                self._start(x, stage)
                if observing:
                    self._stage = Stage.OBSERVING
            if self._stored_stage() is not Stage.READY:
                return self._passed_on(x)
        if _made_by(self, x):
            return x
        return self.fake_quantize(x)

    def quantize_once(self, x: Tensor) -> Any:
        """The same for a tensor that others read through this quantizer.

        They get it as it is, while nobody changes it in place: quantizing
        what is on the grid changes nothing.
        """
        out = self(x)
        if isinstance(out, Tensor) and out is not x and not (
                is_compiling() or is_exporting() or out.is_inference()):
            out._made_by = self, out._version
        return out

    def _refuse_other_types(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(
                f'{type(self).__name__} quantizes floating-point tensors, '
                f'and this is one of {x.dtype}: convert it before, as by '
                'x.float(), or leave its layer out with skip')

    @lasting
    def _start(self, x: Tensor, stage: Stage) -> None:
        """Take the first step from ``x``, if it has one."""
        if isinstance(x, nn.Parameter):
            self.observe_weight(x)
        elif x.numel():
            self.observe(x)
        if stage is Stage.WAITING and get_world_size() > 1:
            self.share_observed()
        if self.was_observed():
            self.initialize()

    def _passed_on(self, x: Tensor) -> Tensor:
        """``x``; in training each parameter has gradient 0, as DDP asks."""
        for parameter in self.parameters():
            if self.training and parameter.requires_grad:
                x = x + (0 * parameter.sum()).to(x.dtype)
        return x


    def _refuse_trace_in_training(self) -> None:
        if self.training or self.stage is Stage.OBSERVING:
            raise RuntimeError(
                f'{type(self).__name__} cannot be traced while it '
                f'{"trains" if self.training else "observes"}: what training '
                'decides anew in each step would be a constant of the graph. '
                'Call model.eval() before')

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` asks for.

        Raises:
            RuntimeError: Always: its Python is none that torch compiles.
        """
        raise RuntimeError(
            f'torch.jit.script cannot compile {type(self).__name__}: trace '
            'the model, torch.jit.trace(model.eval(), example), which saves, '
            'loads and freezes as well')

    @property
    def stage(self) -> Stage:
        """Where it is in its life."""
        # A new one's state may have been copied in: only then it is read.
        return self._stored_stage() if self._stage is Stage.NEW else (
            self._stage)

    def read_stage(self) -> None:
        """Take the stage from the state, after that was loaded or sent."""
        self._stage = self._stored_stage()

    def _stored_stage(self) -> Stage:
        meta = self.initialized.is_meta
        return Stage.NEW if meta else Stage(int(self.initialized))

    def _become(self, stage: Stage) -> None:
        """Enter a stage that is stored."""
        self.initialized.fill_(stage)
        self._stage = stage

    def is_initialized(self) -> bool:
        """Whether it was calibrated or loaded, trained, or is idle.

        One that waits was, and saw only zeros.
        """
        stage = self.stage
        if stage is Stage.OBSERVING:
            stage = self._stored_stage()
        return stage is not Stage.NEW

    def has_step(self) -> bool:
        """Whether it quantizes: ready and switched on."""
        return self._fake_quant_on and self.stage is Stage.READY

    def lacks_step(self) -> bool:
        """Whether it should quantize, but has no step yet."""
        return self._fake_quant_on and not self.is_initialized()

    def leave_float(self) -> None:
        """Make it idle, here and in what is loaded from its state."""
        self._become(Stage.IDLE)

    def is_waiting(self) -> bool:
        """Whether all that it was calibrated on was zero."""
        return self._stored_stage() is Stage.WAITING

    def is_idle(self) -> bool:
        """Whether :meth:`leave_float` was called, or such a state loaded."""
        return self.stage is Stage.IDLE

    def require_step(self) -> None:
        """Refuse to go on without a step.

        Raises:
            RuntimeError: If :meth:`lacks_step`.
        """
        if self.lacks_step():
            raise RuntimeError(
                f'{type(self).__name__} has no step yet: call '
                'fpq_plugin.calibrate(model, batches), or load a checkpoint '
                'trained with FPQ, before evaluation or distributed training')

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switch fake quantization on or off."""
        self._fake_quant_on = bool(enabled)

    def along_channels(self, value: Tensor, x: Tensor) -> Tensor:
        """``value`` of shape (1,) or (C,), broadcasting to ``x``."""
        return along_channels(value, x,
                              self.ch_axis if self.is_per_channel else None)

    def _prepare_for(self, state: Mapping[str, Tensor], prefix: str) -> str:
        """Get ready for a state, or what its tensors alone say against it.

        ``strict=False``, or metadata that is lost, would let it through.
        """
        return ''

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        bits = state_dict.get(prefix + 'bits')
        if bits is not None and int(bits) != self.num_bits:
            error_msgs.append(f'{prefix[:-1]}: the state has {int(bits)} bits '
                              f'and this quantizer {self.num_bits}')
            return
        other = differences(local_metadata.get(KEY, {}), describe(self))
        if other is not None:
            error_msgs.append(f'{prefix[:-1]}: {other[0]} in the state, '
                              f'{other[1]} in the model')
            return
        unfit = self._prepare_for(state_dict, prefix)
        if unfit:
            error_msgs.append(unfit)
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        self.read_stage()

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Keys cannot tell LSQ's numbers from DoReFa's.
        if hasattr(destination, '_metadata'):
            destination._metadata.setdefault(
                prefix[:-1], {})[KEY] = describe(self)
