"""LSQ: the step is learned by gradient, the zero point is fixed."""

from __future__ import annotations

from mmengine.dist import get_world_size
from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import BaseFakeQuantize
from .fake_quantize_function import fake_quantize, positive_step


@MODELS.register_module()
class LSQFakeQuantize(BaseFakeQuantize):
    """Learned step size quantization (spec 2, equations (3) to (5)).

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
        >>> from torch.ao.quantization import QConfig
        >>> qconfig = QConfig(
        ...     activation=LSQFakeQuantize.with_args(bits=4),
        ...     weight=LSQFakeQuantize.with_args(
        ...         bits=4, symmetric=True, per_channel=True))
    """

    def _make_scale(self, scale: Tensor) -> None:
        self.scale = nn.Parameter(scale)

    def step(self) -> Tensor:
        return positive_step(self.scale.detach())

    def grad_factor(self, x: Tensor) -> float:
        """LSQ's factor g on the gradient of a step of ``x``."""
        shared = x.numel() // self.scale.numel()
        if self.over_batch:
            shared *= get_world_size() * self.micro_batches
        return (max(shared, 1) * self.quant_max)**-0.5

    def fake_quantize(self, x: Tensor) -> Tensor:
        return fake_quantize(
            x, self.scale, self.zero_point, self.quant_min, self.quant_max,
            self.ch_axis if self.is_per_channel else None,
            self.grad_factor(x))
