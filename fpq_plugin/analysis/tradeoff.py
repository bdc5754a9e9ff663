"""What a model is chosen by, and the layers to give more bits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..layer_table import LayerTable, rows
from ..layers import QuantizedLayer, get_backend
from ..options import FLOAT_BITS
from .batches import Batch
from .measuring import Estimate, ProgressBar, left_unchanged

ROUNDS = 9
IMAGES_PER_CALL = 8


def top1_accuracy(model: nn.Module,
                  batches: Iterable[Batch],
                  total: int | None = None,
                  progress: bool = False) -> Estimate | None:
    """How often the model's first answer is right, in %.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Iterable[Batch]): The data; each is read once.
        total (int, optional): Number of batches, for the bar. Defaults to
            None.
        progress (bool): Whether to show a bar. Defaults to False.

    Returns:
        Estimate | None: In %, the error over images; None if the data or the
        model has no one class for an image.
    """
    right = []
    with left_unchanged(model, 0), ProgressBar(
            'accuracy', total, 'batches', progress) as bar:
        for batch in batches:
            answers = batch.right_answers(model)
            if answers is None:
                return None
            right.append(answers.cpu())
            bar.step()
    return Estimate.from_samples(100 * torch.cat(right)) if right else None


def weight_kilobytes(model: nn.Module) -> float:
    """Size of the weights at their bits, in kB of 1,000 bytes.

    Those of two axes or more, as in FPQ's table of layers; biases, norms and
    quantizers' scales are not counted.

    Args:
        model (nn.Module): The model, converted or not.
    """
    table = LayerTable(rows(model, {}, get_backend('torch_ao')))
    return table.weight_bytes() / 1000


def bits_of(layer: nn.Module, part: str) -> int:
    """Bits of a layer's 'weight' or 'input', 32 for float."""
    if not isinstance(layer, QuantizedLayer):
        return FLOAT_BITS
    return getattr(
        getattr(layer, f'{part}_quantizer', None), 'num_bits', FLOAT_BITS)


def latencies(models: Mapping[str, nn.Module],
              batches: Mapping[str, Batch],
              rounds: int = ROUNDS) -> dict[str, float]:
    """Time of an image in PyTorch on this machine, in ms.

    The models take turns, so that what else the machine does meets all of
    them; the first call of each is not counted. Quantization is simulated in
    PyTorch: what the exported model takes is another matter.

    Args:
        models (Mapping[str, nn.Module]): Models by label; their states stay.
        batches (Mapping[str, Batch]): A batch for each, of which the first 8
            images are used.
        rounds (int): Counted calls of each model. Defaults to 9.

    Returns:
        dict[str, float]: The median over calls, by label.
    """
    seconds: dict[str, list[float]] = {label: [] for label in models}
    for _ in range(rounds + 1):
        for label, model in models.items():
            inputs = batches[label].inputs[:IMAGES_PER_CALL]
            with left_unchanged(model, 0):
                start = _now(inputs)
                batches[label].output(model, inputs)
                seconds[label].append((_now(inputs) - start) / len(inputs))
    return {
        label: 1000 * median(counted[1:])
        for label, counted in seconds.items()
    }


def _now(inputs: Tensor) -> float:
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)
    return time.perf_counter()


BIT_WIDTHS = (4, 8)
"""The bits that are suggested: the next of these above a layer's own."""

DECIBELS_PER_BIT = 6.02
"""What one bit more adds to an SQNR: 20 log10(2)."""

_OPTIONS = dict(weight='weight', input='activation')


def worst_layers(rows: Iterable[dict[str, Any]],
                 most: int | None = None) -> list[dict[str, Any]]:
    """The layers that quantization costs most, the worst first.

    Args:
        rows (Iterable[dict]): The model's rows.
        most (int, optional): How many. Defaults to None, a quarter of the
            layers that can be given more bits, five at most.

    Returns:
        list[dict]: Rows by output SQNR, the lowest first, without layers
        that are float, or whose error is that of a part with 8 bits.
    """
    ranked = sorted((row for row in rows if parts_to_raise(row)),
                    key=lambda row: row['sqnr']['output'])
    if most is None:
        most = min(5, math.ceil(len(ranked) / 4))
    return ranked[:most]


def parts_to_raise(row: dict[str, Any]) -> dict[str, int]:
    """Which parts of a layer get how many bits.

    The part with the lower SQNR makes the layer's error; both do if less
    than one bit lies between them.

    Args:
        row (dict): A layer's row.

    Returns:
        dict[str, int]: Of 'weight' and 'input', the bits suggested; empty if
        there is nothing to give.
    """
    errors = {
        part: row['sqnr'][part]
        for part in ('weight', 'input')
        if row['sqnr'] and row['sqnr'][part] is not None
    }
    return {
        part: next(b for b in BIT_WIDTHS if b > row[f'{part}_bits'])
        for part, error in errors.items()
        if error < min(errors.values()) + DECIBELS_PER_BIT
        and row[f'{part}_bits'] < BIT_WIDTHS[-1]
    }


def more_kilobytes(row: dict[str, Any]) -> float:
    """What a layer's suggestion adds to the model's size, in kB."""
    bits = parts_to_raise(row).get('weight', row['weight_bits'])
    return row['weights'] * (bits - row['weight_bits']) / 8 / 1000


def overrides(rows: Sequence[dict[str, Any]]) -> dict[str, dict]:
    """The hook's option ``overrides`` that gives the layers the bits.

    Args:
        rows (Sequence[dict]): Rows of :func:`worst_layers`.

    Returns:
        dict[str, dict]: From layer name to options.
    """
    return {
        row['name']: {
            _OPTIONS[part]: dict(bits=bits)
            for part, bits in parts_to_raise(row).items()
        }
        for row in rows
    }


def overrides_text(rows: Sequence[dict[str, Any]]) -> str:
    """The same as Python, to paste into the hook's options."""
    lines = []
    for name, options in overrides(rows).items():
        inside = ', '.join(f'{part}=dict(bits={option["bits"]})'
                           for part, option in options.items())
        lines.append(f'    {name!r}: dict({inside}),\n')
    return 'overrides={\n' + ''.join(lines) + '}'
