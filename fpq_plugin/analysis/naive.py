"""A full-precision model quantized without training."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from mmengine import Config
from mmengine.registry import HOOKS
from torch import nn

from ..calibrate import calibrate
from ..inference import fpq_options
from .batch import Batch
from .quiet import quiet


def naive_quantization(full: nn.Module, config: Config,
                       batches: Sequence[Batch]) -> nn.Module:
    """Quantize a copy of ``full`` as a config says, calibrated only.

    Args:
        full (nn.Module): A float model; it stays as it is.
        config (Config): A config with an FPQHook.
        batches (Sequence[Batch]): The calibration data.

    Returns:
        nn.Module: A new model in eval mode.
    """
    model = copy.deepcopy(full)
    HOOKS.build(fpq_options(config)).convert(model)
    with quiet(model, 0):
        calibrate(model, batches, forward=lambda m, batch: batch.output(m))
    return model
