"""The seam between FPQ and a fake quantizer of any backend."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from .._compat.tracing import is_exporting, whole_call


@dataclass(frozen=True)
class Grid:
    """Values ``(q - zero_point) * step``, q an integer of a range, eq. (3).

    Attributes:
        step (Tensor): Positive, in units of the input, (1,) or (C,).
        zero_point (Tensor): Integers, of ``step``'s shape.
        quant_min (int): Lowest q.
        quant_max (int): Highest q.
        ch_axis (int, optional): Axis that has a step for each index, if any.
    """

    step: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    ch_axis: int | None = None


MIN_BITS, MAX_BITS = 2, 8


class Stage(IntEnum):
    """Where a quantizer is in its life, as its state's ``initialized`` says.

    Attributes:
        NEW: It has no step yet.
        READY: It has a step, and quantizes.
        IDLE: No forward reaches it; it passes its input on.
        OBSERVING: It collects the range of what it sees; never stored.
    """

    NEW = 0
    READY = 1
    IDLE = 2
    OBSERVING = 3


class Quantizer(ABC, nn.Module):
    """What calibration, SFP, optimizer groups and checkpoints know.

    Life (:class:`Stage`): built new; *calibrated* (:meth:`observe` on data,
    then :meth:`initialize`); then it fake quantizes. One that is used in
    training before it was calibrated initialises itself from that first
    tensor, as LSQ does; in eval mode or in distributed training that is an
    error, since ranks would disagree without a word. One that no forward
    reaches can be left idle (:meth:`leave_float`).

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

        Raises:
            ValueError: If nothing, or something non-finite, was observed.
        """

    def grid(self) -> Grid:
        """The integers that its values stand for, for an export.

        Raises:
            NotImplementedError: If it has none, or does not tell them.
        """
        raise NotImplementedError(
            f'{type(self).__name__} does not tell its integers (no grid())')

    def forward(self, x: Tensor) -> Any:
        """Observe and/or fake quantize ``x``; shape and dtype are kept.

        ``torch.fx.symbolic_trace`` finds one call of this module here.

        Raises:
            RuntimeError: If not calibrated, in eval mode or in distributed
                training; or traced while it trains or observes.
        """
        stage = self.stage
        whole = whole_call(self, (x, ), {})
        if whole is not None or is_exporting():
            self._refuse_trace_in_training()
        if whole is not None:
            return whole
        observing = stage is Stage.OBSERVING
        if observing:
            self.observe(x)
        if not self._fake_quant_on:
            return x
        if observing:  # as torch.ao does: both at once
            stage = self._stored_stage()
        if stage is Stage.IDLE:
            return x
        if stage is Stage.NEW:
            if not self.training or get_world_size() > 1:
                self.require_step()
            self.observe(x)
            self.initialize()
            if observing:
                self._stage = Stage.OBSERVING
        return self.fake_quantize(x)

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
        """Whether the step was calibrated, learned or loaded, or is idle."""
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

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        bits = state_dict.get(prefix + 'bits')
        if bits is not None and int(bits) != self.num_bits:
            error_msgs.append(f'{prefix[:-1]}: the state has {int(bits)} bits '
                              f'and this quantizer {self.num_bits}')
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        self.read_stage()


def named_quantizers(model: nn.Module,
                     remove_duplicate: bool = True) -> dict[str, Quantizer]:
    """The model's fake quantizers by name.

    Args:
        model (nn.Module): The model.
        remove_duplicate (bool): Whether a quantizer that several places
            share has one name only; a state dict has a key for each.
            Defaults to True.
    """
    return {
        name: module
        for name, module in model.named_modules(
            remove_duplicate=remove_duplicate)
        if isinstance(module, Quantizer)
    }


@contextmanager
def observing(quantizers: Iterable[Quantizer]) -> Iterator[None]:
    """Inside, these observe what they see, from nothing on."""
    quantizers = list(quantizers)
    for quantizer in quantizers:
        quantizer.reset_observer()
        quantizer._stage = Stage.OBSERVING
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.read_stage()


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Inside, no fake quantizer of the model quantizes."""
    were_on = {q: q._fake_quant_on for q in named_quantizers(model).values()}
    for quantizer in were_on:
        quantizer.enable_fake_quant(False)
    try:
        yield
    finally:
        for quantizer, on in were_on.items():
            quantizer.enable_fake_quant(on)


def along_channels(value: Tensor, x: Tensor, ch_axis: int | None) -> Tensor:
    """Let a tensor of one element per channel broadcast to ``x``.

    Args:
        value (Tensor): Shape (1,) or, with ``ch_axis``, (C,).
        x (Tensor): What it is to broadcast to, any shape.
        ch_axis (int, optional): Channel axis of ``x``; None: ``value`` is
            returned as it is.
    """
    if ch_axis is None:
        return value
    shape = [1] * x.dim()
    shape[ch_axis] = -1
    return value.view(shape)


def check_bits(bits: int) -> None:
    """Refuse ``bits`` that no quantizer of FPQ has.

    Raises:
        ValueError: If ``bits`` is not an integer of 2 to 8.
    """
    if (isinstance(bits, bool) or not isinstance(bits, int)
            or not MIN_BITS <= bits <= MAX_BITS):
        raise ValueError(f'bits must be an integer of {MIN_BITS} to '
                         f'{MAX_BITS}, got {bits!r}')
