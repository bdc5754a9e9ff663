"""The integers behind a fake quantizer's values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn


@dataclass(frozen=True)
class Grid:
    """Values ``(q - zero_point) * step``, q an integer of a range; spec (3).

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
_IDLE = 2


class Quantizer(ABC, nn.Module):
    """What calibration, SFP, optimizer groups and checkpoints know.

    Life: built uninitialised; *calibrated* (:meth:`observe` on data, then
    :meth:`initialize`); then it fake quantizes. One that is used in training
    before it was calibrated initialises itself from that first tensor, as LSQ
    does; in eval mode or in distributed training that is an error, since
    ranks would disagree without a word.

    One that no forward reaches can be left *idle* (:meth:`leave_float`): it
    passes its input on.

    ``initialized`` (0 no, 1 yes, 2 idle) and ``bits`` are part of the
    ``state_dict``. Loading a state of other bits is refused.

    Args:
        bits (int): Bits, 2 to 8.
        device (torch.device, optional): Where the state is made. Defaults to
            None, torch's default device.

    Attributes:
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
        self._observing = False
        self._ready = False
        self.register_buffer(
            'initialized', torch.tensor(0, dtype=torch.uint8, device=device))
        self.register_buffer(
            'bits', torch.tensor(bits, dtype=torch.uint8, device=device))

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
        """Set step and zero point from what was observed.

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

    def forward(self, x: Tensor) -> Tensor:
        """Observe and/or fake quantize ``x``; shape and dtype are kept.

        Raises:
            RuntimeError: If not calibrated, in eval mode or in distributed
                training.
        """
        if self._observing:
            self.observe(x)
        lacks_step = self.lacks_step()
        if not self._fake_quant_on:
            return x
        if lacks_step:
            if not self.training or get_world_size() > 1:
                self.require_step()
            self.observe(x)
            self.initialize()
        return self.fake_quantize(x)

    def is_initialized(self) -> bool:
        """Whether the step was calibrated, learned or loaded, or is idle."""
        if not self._ready:
            state = int(self.initialized)
            self._ready = state > 0
            if state == _IDLE:
                self._fake_quant_on = False
        return self._ready

    def has_step(self) -> bool:
        """Whether it quantizes: initialised and switched on."""
        return self.is_initialized() and self._fake_quant_on

    def lacks_step(self) -> bool:
        """Whether it should quantize, but has no step yet."""
        return not self.is_initialized() and self._fake_quant_on

    def leave_float(self) -> None:
        """Make it idle, here and in what is loaded from its state."""
        self.initialized.fill_(_IDLE)
        self._ready = False
        self.is_initialized()

    def is_idle(self) -> bool:
        """Whether :meth:`leave_float` was called, or such a state loaded."""
        return int(self.initialized) == _IDLE

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

    def _mark_initialized(self) -> None:
        self.initialized.fill_(1)
        self._ready = True

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
