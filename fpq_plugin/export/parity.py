"""The exported model held against the trained one, on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

    def holds(self, tolerance: float) -> bool:
        """Whether the models are the same.

        Args:
            tolerance (float): Share of inputs whose argmax may differ, in
                %. One input may in any case.
        """
        return bool(np.isfinite(self.largest_difference)) and (
            self.other_class <= max(1, tolerance / 100 * self.images))

    def refuse(self, tolerance: float) -> None:
        """Refuse models that are not the same, see :meth:`holds`.

        Raises:
            ParityError: If they are not.
        """
        if not np.isfinite(self.largest_difference):
            raise ParityError('not exported: the exported model gives values '
                              'that are not finite')
        if not self.holds(tolerance):
            raise ParityError(
                f'not exported: {self.other_class} of {self.images} images '
                f'have another class in the exported model, more than '
                f'{tolerance:g} %; logits differ by '
                f'{self.largest_difference:.3g} at most and '
                f'{self.mean_difference:.3g} on average (their spread is '
                f'{self.spread:.3g})')


@torch.no_grad()
def measure_parity(trained: nn.Module,
                   exported: Sequence[Callable[[Tensor], Tensor]],
                   batches: Iterable[Batch]) -> list[Parity]:
    """Run the trained model and exported ones on all batches.

    Args:
        trained (nn.Module): The trained model, in eval mode; its output's
            axis 1 holds the classes.
        exported (Sequence[Callable]): Each from inputs to outputs.
        batches (Iterable[Batch]): What to run them on.

    Returns:
        list[Parity]: The comparison with each exported model.
    """
    ours, labels = [], []
    theirs: list[list[Tensor]] = [[] for _ in exported]
    for inputs, wanted in batches:
        ours.append(trained(inputs))
        labels.append(wanted)
        for run, outputs in zip(exported, theirs):
            outputs.append(run(inputs))
    known = all(wanted is not None for wanted in labels)
    return [
        _compare(torch.cat(ours), torch.cat(outputs),
                 torch.cat(labels) if known else None) for outputs in theirs
    ]


def _compare(ours: Tensor, theirs: Tensor, labels: Tensor | None) -> Parity:
    ours, theirs = (x.double().flatten(1) for x in (ours, theirs))
    classes = [x.argmax(1) for x in (ours, theirs)]
    top1 = [
        None if labels is None else 100 * float(
            (c == labels).double().mean()) for c in classes
    ]
    far = (ours - theirs).abs()
    lost = ours.amax(1) - ours.gather(1, classes[1][:, None])[:, 0]
    return Parity(
        len(ours), float(far.max()), float(far.mean()), float(ours.std()),
        int((lost > ROUNDING * ours.abs().max()).sum()), *top1)
