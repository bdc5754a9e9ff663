"""The exported model held against the trained one, on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

# Of the largest logit: sums in another order.
ROUNDING = 1e-6

Batch = tuple[Tensor, Tensor | None]
"""Inputs (N, ...) and labels (N,), or None."""


class ParityError(RuntimeError):
    """The exported model does not answer as the trained one."""


@dataclass(frozen=True)
class Parity:
    """How two models' outputs (N, classes) differ.

    Attributes:
        images (int): Inputs that both were run on.
        largest_difference (float): Of a logit.
        mean_difference (float): Of a logit.
        spread (float): Standard deviation of the trained model's logits.
        other_class (int): Inputs whose argmax differs; a tie in the trained
            model's logits, up to float32's rounding, may fall either way.
        top1_trained (float, optional): Top-1 of the trained model, in %, if
            there are labels.
        top1_exported (float, optional): The same of the exported one.
    """

    images: int
    largest_difference: float
    mean_difference: float
    spread: float
    other_class: int
    top1_trained: float | None
    top1_exported: float | None

    def equal(self) -> float:
        """Share of inputs with the same argmax, in %."""
        return 100 * (1 - self.other_class / self.images)

    def as_dict(self) -> dict:
        """All figures, for JSON."""
        return {**asdict(self), 'equal': self.equal()}

    def refuse(self, tolerance: float) -> None:
        """Refuse models that are not the same.

        Args:
            tolerance (float): Share of inputs whose argmax may differ, in
                %. One input may in any case.

        Raises:
            ParityError: If more differ, or a logit is not finite.
        """
        if not np.isfinite(self.largest_difference):
            raise ParityError('not exported: the exported model gives values '
                              'that are not finite')
        if self.other_class > max(1, tolerance / 100 * self.images):
            raise ParityError(
                f'not exported: {self.other_class} of {self.images} images '
                f'have another class in the exported model, more than '
                f'{tolerance:g} %; logits differ by '
                f'{self.largest_difference:.3g} at most and '
                f'{self.mean_difference:.3g} on average (their spread is '
                f'{self.spread:.3g})')


@torch.no_grad()
def measure_parity(trained: nn.Module, exported: Callable[[Tensor], Tensor],
                   batches: Iterable[Batch]) -> Parity:
    """Run both models on all batches.

    Args:
        trained (nn.Module): The trained model, in eval mode; its output's
            axis 1 or, on token tensors, last axis holds the classes.
        exported (Callable): From inputs to the exported model's outputs.
        batches (Iterable[Batch]): What to run them on.

    Returns:
        Parity: The comparison.
    """
    ours, theirs, labels = [], [], []
    for inputs, wanted in batches:
        ours.append(trained(inputs))
        theirs.append(exported(inputs))
        labels.append(wanted)
    one, two = torch.cat(ours).double(), torch.cat(theirs).double()
    classes = [x.flatten(1).argmax(1) for x in (one, two)]
    top1 = [None, None]
    if all(wanted is not None for wanted in labels):
        right = torch.cat(labels)
        top1 = [100 * float((c == right).double().mean()) for c in classes]
    far = (one - two).abs()
    flat = one.flatten(1)
    lost = flat.amax(1) - flat.gather(1, classes[1][:, None])[:, 0]
    return Parity(
        len(one), float(far.max()), float(far.mean()), float(one.std()),
        int((lost > ROUNDING * one.abs().max()).sum()), *top1)
