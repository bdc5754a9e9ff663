"""LSQ and LSQ+: the step, and the offset, are learned by gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import torch
from mmengine.dist import get_world_size
from mmengine.registry import MODELS
from torch import Tensor, nn

from .._compat.tracing import is_exporting
from .base_fake_quantize import BaseFakeQuantize
from .description import KEY
from .fake_quantize_function import positive_step

FORMER_DEFAULT = ('LSQFakeQuantize was the default once and is '
                  "preset='paper' now")


_log_quantizers: WeakSet[LogLSQFakeQuantize] = WeakSet()


def log_quantizers() -> list[LogLSQFakeQuantize]:
    """All quantizers of this process whose step is a logarithm."""
    return list(_log_quantizers)


def is_of_lsq(state: Mapping[str, Any], prefix: str,
              description: Mapping[str, Any]) -> bool:
    """Whether a state has LSQ's ``scale``, not its logarithm, for one.

    Args:
        state (Mapping[str, Tensor]): A state dict.
        prefix (str): What the quantizer's keys begin with.
        description (Mapping): What is stored of it; empty: keys tell.
    """
    kind = description.get('type', LSQFakeQuantize.__name__)
    return (f'{prefix}scale' in state and f'{prefix}offset' not in state
            and kind == LSQFakeQuantize.__name__)


@MODELS.register_module()
class LSQFakeQuantize(BaseFakeQuantize):
    """Learned step size quantization (equations (3) to (5)).

    The step is the parameter ``scale``; its gradient carries LSQ's factor
    ``g = 1 / sqrt(n Qp)`` with Qp the highest integer and n the elements that
    share the step, those on other ranks and in other micro-batches of an
    optimizer step included (Esser et al., ICLR 2020). Whatever the optimizer
    does to ``scale``, the step used is ``max(|scale|, 1.2e-7)``: positive
    inside the graph. The zero point stays as calibrated.

    Takes the arguments of :class:`BaseFakeQuantize`.

    Examples:
        >>> import torch
        >>> from fpq_plugin import LSQFakeQuantize
        >>> quantizer = LSQFakeQuantize(bits=4)
        >>> quantizer(torch.linspace(-1, 2, 16)).unique().numel()
        16
    """

    def _make_scale(self, scale: Tensor) -> None:
        self.scale = nn.Parameter(scale)

    def step(self) -> Tensor:
        return positive_step(self.scale.detach())

    def grad_factor(self, x: Tensor) -> float:
        """LSQ's factor g on the gradient of a step of ``x``."""
        if is_exporting():  # of sizes, which must not become constants
            return 1.0
        shared = x.numel() // self.zero_point.numel()
        if self.over_batch:
            shared *= get_world_size() * self.micro_batches
        return (max(shared, 1) * self.quant_max)**-0.5

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.quantize(x, self.scale, self.grad_factor(x))


@MODELS.register_module()
class LogLSQFakeQuantize(LSQFakeQuantize):
    """LSQ whose step is learned in the logarithm.

    The parameter is ``log_scale``, the natural logarithm of the step. Its
    gradient is ``s dL/ds``, without LSQ's factor: an update of the optimizer
    is a relative change of the step, the same for a channel of nine weights
    and for one of a thousand, at any learning rate, and no step becomes
    negative. So are trained quantization thresholds learned (Jain et al.,
    MLSys 2020). :attr:`max_change` bounds what one update does.

    Takes the arguments of :class:`BaseFakeQuantize`.

    Attributes:
        max_change (float): By how much an update changes ``log_scale`` at
            most, where :func:`~fpq_plugin.optimizer_watch.bound_steps`
            holds the optimizer: those of converted models, their copies
            included. Most trainings were seen to change it by less than
            0.01.

    Examples:
        >>> import torch
        >>> from fpq_plugin import LogLSQFakeQuantize
        >>> quantizer = LogLSQFakeQuantize(bits=4)
        >>> quantizer(torch.linspace(-1, 2, 16)).unique().numel()
        16
    """

    max_change = 0.05

    def _make_scale(self, scale: Tensor) -> None:
        self.log_scale = nn.Parameter(scale.log())
        _log_quantizers.add(self)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)  # copies and loaded ones train as well
        _log_quantizers.add(self)

    @property
    def scale(self) -> Tensor:
        """The step, with its gradient; shape (1,) or (C,)."""
        return self.log_scale.exp()

    def _set_step(self, step: Tensor) -> None:
        self.log_scale.copy_(step.log())

    def _per_channel(self) -> tuple[Tensor, ...]:
        return self.log_scale, self.zero_point

    def grad_factor(self, x: Tensor) -> float:
        """1: the logarithm needs no factor."""
        return 1.0

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        if is_of_lsq(state_dict, prefix, local_metadata.get(KEY, {})):
            # Without strict=True a missing step would go unnoticed.
            error_msgs.append(
                f'{prefix}scale: {FORMER_DEFAULT}, without a Runner '
                "fpq_plugin.Recipe(preset='paper').convert(model)")


@MODELS.register_module()
class LSQPlusFakeQuantize(LSQFakeQuantize):
    """LSQ with a learned offset (Bhalgat et al., CVPR workshops 2020).

    Asymmetric, as for activations: ``x_hat = clip(round((x - beta) / s),
    qmin, qmax) s + beta`` with the parameter ``offset`` = beta, which is in
    the input's units and starts at ``-z s``: where LSQ starts. The straight-
    through gradient for beta is 0 where ``x`` is inside the clipping range
    and 1 outside; it carries the factor g of LSQ, as the step's does.

    Symmetric, as for weights: LSQ, started from the range ``mean +- 3
    standard deviations`` instead of the extremes, ``s = 2 max|mean +- 3 std| /
    n``, n the number of integers.

    A learned offset is no multiple of the step: a padded 0 is not on the
    grid, and integer formats cannot hold the outputs.

    Takes the arguments of :class:`BaseFakeQuantize`.

    Examples:
        >>> import torch
        >>> from fpq_plugin import LSQPlusFakeQuantize
        >>> quantizer = LSQPlusFakeQuantize(bits=4)
        >>> quantizer(torch.linspace(-1, 2, 16)).unique().numel()
        16
    """

    def _make_scale(self, scale: Tensor) -> None:
        super()._make_scale(scale)
        self.integer_zero_point = self.symmetric
        if not self.symmetric:
            self.offset = nn.Parameter(scale.clone().zero_())

    def _range(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if not self.symmetric:
            return super()._range(rows)
        mean = rows.mean(1)
        spread = 3 * rows.std(1, correction=0)
        return mean - spread, mean + spread

    def _set_step(self, step: Tensor) -> None:
        if self.symmetric:
            levels = self.quant_max - self.quant_min
            super()._set_step(step * levels / (levels + 1))
            return
        super()._set_step(step)
        self.offset.copy_(-self.zero_point * step)
        self.zero_point.zero_()

    def _per_channel(self) -> tuple[Tensor, ...]:
        offset = () if self.symmetric else (self.offset, )
        return super()._per_channel() + offset

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.symmetric:
            return super().fake_quantize(x)
        # The gradient's factor g; the offset's value is unchanged.
        fixed, g = self.offset.detach(), self.grad_factor(x)
        offset = self.along_channels(fixed + g * (self.offset - fixed), x)
        wide = x.to(torch.promote_types(x.dtype, offset.dtype))
        out = super().fake_quantize(wide - offset) + offset
        return out.to(x.dtype)
