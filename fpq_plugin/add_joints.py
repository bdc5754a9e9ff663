"""Quantizing what is no layer, for an engine that runs on integers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from .calibrate import run_batch
from .convert import refuse_wrapped
from .joints import Placing
from .layer_table import LayerTable
from .layers import quantized_layers
from .recipe import Recipe
from .state import first_few


def add_joints(model: nn.Module,
               batch: Any,
               target: str = 'onnxruntime',
               joints: dict | None = None,
               forward: Callable[[nn.Module, Any], Any] | None = None,
               warn: Callable[[str], Any] = warnings.warn) -> LayerTable:
    """Give a converted model the fake quantizers that an engine wants.

    An engine computes a sum, a pool or a concatenation on integers if its
    operands and its result are quantized, and some compute a convolution so
    only if its result is. One forward shows which tensors these are; each
    gets one quantizer, where a module returns it, and the layers that read it
    share that one if they have its bits. Call it between :func:`convert` and
    :func:`calibrate`; after a training it leaves the trained steps, and the
    new quantizers are to be calibrated.

    Args:
        model (nn.Module): A converted model, changed in place.
        batch (Any): A batch as :func:`calibrate` takes it.
        target (str): The engine. Defaults to 'onnxruntime'.
        joints (dict, optional): The fake quantizers' options. Defaults to
            None: 8 bits, of the default type.
        forward (Callable, optional): Runs the model on the batch. Defaults to
            None, as in :func:`calibrate`.
        warn (Callable): Told of operations that stay float, though the engine
            could run them on integers. Defaults to ``warnings.warn``.

    Returns:
        LayerTable: One row for each new quantizer.

    Raises:
        ValueError: If there is no such target, an option is wrong, or the
            model is not converted, wrapped, or has joints already.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from fpq_plugin import add_joints, calibrate, convert
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(),
        ...                       nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...                       nn.Linear(8, 2))
        >>> table = convert(model)
        >>> images = torch.rand(4, 1, 8, 8)
        >>> [(row.name, row.why) for row in add_joints(model, images)]
        [('1.output', 'avg_pool')]
        >>> calibrate(model, [images])
    """
    # The layers have theirs already.
    recipe = Recipe(target=target, joints=joints or {}, activation=None,
                    key='')
    refuse_wrapped(model, 'add_joints')
    if not quantized_layers(model):
        raise ValueError('the model has no quantized layer: call '
                         'convert(model) first')
    rows, placing = recipe.find_joints(
        model, lambda: (forward or run_batch)(model, batch))
    if placing.left:
        warn(float_operations(placing, target))
    return LayerTable(rows)


def float_operations(placing: Placing, target: str) -> str:
    """What stays float that an engine could run on integers, for a message.

    Args:
        placing (Placing): The places, with what was left.
        target (str): The engine.
    """
    return (f'FPQ leaves {len(placing.left)} operations float that {target} '
            'could run on integers: '
            f'{first_few(list(placing.left), between="; ")}')
