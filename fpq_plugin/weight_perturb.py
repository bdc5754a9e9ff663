"""Noise on the weights instead of the features, the paper's Fig. 2."""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import Tensor, nn

from .perturb import StochasticFeaturePerturbation


@MODELS.register_module()
class StochasticWeightPerturbation(StochasticFeaturePerturbation):
    """SFP's noise on the quantized weight: what FPQ is compared with.

    In training, each call draws b ~ Bernoulli(p); if b, ``w <- w + d`` with d
    elementwise uniform on ``[-s/2, s/2]`` and s the weight's step, of each
    output channel if it has one.

    Args:
        p (float): Probability that a call is perturbed, in [0, 1]. Defaults
            to 0.1.
        where (str): ``'after'`` the weight's fake quantization or
            ``'before'`` it. Defaults to 'after'.

    Raises:
        ValueError: If ``p`` or ``where`` is none of these.
    """

    of_weight = True

    def __init__(self, p: float = 0.1, where: str = 'after') -> None:
        super().__init__(p, where)

    def step_along(self, quantizer: nn.Module, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        if quantizer.is_per_channel:
            shape[quantizer.ch_axis] = -1
        return quantizer.step().view(shape)
