"""What a model is chosen by: accuracy, size and latency."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from statistics import median

import torch
from torch import Tensor, nn

from ..layers import QuantizedLayer
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
    bits = 0
    for layer in model.modules():
        weight = getattr(layer, 'weight', None)
        if isinstance(weight, Tensor) and weight.dim() > 1:
            bits += weight.numel() * bits_of(layer, 'weight')
    return bits / 8 / 1000


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
