"""Quantization error over training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmengine.registry import HOOKS
from torch import nn

from ..analysis import Batch, Estimate, layer_sqnr
from ..analysis.weighted_layers import weighted_layers
from .measure_hook import MeasureHook


@HOOKS.register_module()
class SQNRHook(MeasureHook):
    """Logs ``sqnr_weight``, ``_input`` and ``_output``, in dB.

    Means over the quantized layers, but parts that are float or without any
    error; the error is over layers. Takes the arguments of
    :class:`MeasureHook`.
    """

    title = 'sqnr'

    def measure(self, model: nn.Module,
                batches: Sequence[Batch]) -> dict[str, Estimate]:
        chosen = weighted_layers(model, self.layers)
        found = [
            value for name, value in layer_sqnr(model, batches).items()
            if name in chosen
        ]
        if not found:
            raise ValueError('SQNRHook: no layer is quantized; it needs an '
                             'FPQHook in default_hooks')
        means = {}
        for part in ('weight', 'input', 'output'):
            values = [getattr(value, part) for value in found]
            values = [v for v in values if v is not None and math.isfinite(v)]
            if values:
                means[part] = Estimate.of(torch.tensor(values))
        return means
