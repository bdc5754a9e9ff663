"""The exported model held against the trained one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .images import WAY_OUT, Batch, some_images
from .outputs import tensors_of

# Points of top-1 that may be lost.
TOLERANCE = 0.1
# Without labels: classes that may be others for each that may be wrong.
OTHERS_FOR_A_WRONG_ONE = 10
# Of the largest output: sums in another order.
ROUNDING = 1e-6
# Of the largest output: a spread that rounding alone may make.
CONSTANT = 1e-5
# Of the outputs' spread: what the mean difference may be. A value that falls
# to the next step now and then made it 1e-3 at most in the models measured.
MEAN_DIFFERENCE = 0.02
# The same of several outputs, whose classes nobody counts: a trained RTMDet
# at 8 bits differs by 0.025, and has 0.1 points of mAP less.
MEAN_DIFFERENCE_OF_SEVERAL = 0.05
# The same for each point of top-1 that may be lost, of one point at most.
MEAN_DIFFERENCE_A_POINT = 0.2


class ParityError(RuntimeError):
    """The exported model does not answer as the trained one."""


@dataclass(frozen=True)
class Parity:
    """How two models' outputs differ.

    Attributes:
        images (int): Inputs that both were run on.
        largest_difference (float): Of an output.
        mean_difference (float): Of an output.
        spread (float): Standard deviation of the trained model's outputs; of
            one that is constant, up to float32's rounding, its size.
        answers (int): How many classes were given: one an input for outputs
            (N, C), one a place for (N, C, ...), none if there is one output
            or no axis of classes.
        other_class (int): Answers that differ; a tie in the trained model's
            outputs, up to float32's rounding, may fall either way.
        top1_trained (float, optional): Top-1 of the trained model, in %, if
            there are labels and outputs are (N, C).
        top1_exported (float, optional): The same of the exported one.
        outputs (tuple[Parity, ...]): Of a model with several outputs that of
            each; what stands here then is of the one that differs most for
            its spread. Defaults to none.
        batches (tuple[int, ...]): Sizes of the batches. Defaults to none.
    """

    images: int
    largest_difference: float
    mean_difference: float
    spread: float
    answers: int
    other_class: int
    top1_trained: float | None
    top1_exported: float | None
    outputs: tuple[Parity, ...] = ()
    batches: tuple[int, ...] = ()

    def equal(self) -> float | None:
        """Share of answers of the same class, in %; None without any."""
        if not self.answers:
            return None
        return 100 * (1 - self.other_class / self.answers)

    def as_dict(self) -> dict:
        """All figures, for JSON."""
        found = {**asdict(self), 'equal': self.equal()}
        found.pop('outputs')
        found['batches'] = list(self.batches)
        if self.outputs:
            found['outputs'] = [each.as_dict() for each in self.outputs]
        return found

    def holds(self, tolerance: float) -> bool:
        """Whether the models are the same.

        Args:
            tolerance (float): Points of top-1 that may be lost, in %, if
                there are labels; if not, ten times this share of the answers
                may have another class. One image, or answer, may in any case.
                Above 0.1 the mean difference may grow with it.
        """
        return not self.faults(tolerance)

    def faults(self, tolerance: float) -> list[str]:
        """Why the models are not the same, for :meth:`holds`.

        Args:
            tolerance (float): As for :meth:`holds`.

        Returns:
            list[str]: The reasons, none if they are the same.
        """
        if not np.isfinite(self.largest_difference):
            return ['the exported model gives values that are not finite']
        found = []
        share = OTHERS_FOR_A_WRONG_ONE * tolerance
        if self.top1_trained is not None and self.top1_exported is not None:
            lost = self.top1_trained - self.top1_exported
            if lost > max(tolerance, 100 / self.images) + ROUNDING:
                found.append(f'top-1 is {lost:.2f} points lower in the '
                             f'exported model, more than {tolerance:g}')
        elif self.other_class > max(1, share / 100 * self.answers):
            found.append(
                f'{self.other_class} of {self.answers} classes are other ones '
                f'in the exported model, more than {share:g} %')
        allowed = max(MEAN_DIFFERENCE_OF_SEVERAL if self.outputs else
                      MEAN_DIFFERENCE,
                      MEAN_DIFFERENCE_A_POINT * min(tolerance, 1))
        if self.mean_difference > allowed * self.spread:
            found.append(f'outputs differ by more than {allowed:.0%} of '
                         'their spread')
        return found

    def refuse(self, tolerance: float, moved_weights: int = 0) -> None:
        """Refuse models that are not the same, see :meth:`holds`.

        Args:
            tolerance (float): As for :meth:`faults`.
            moved_weights (int): How many weights of -128 are one step from
                it in the exported model. Defaults to 0.

        Raises:
            ParityError: If they are not.
        """
        faults = self.faults(tolerance)
        if faults:
            raise ParityError(
                f'not exported: {"; ".join(faults)}. The largest difference '
                f'is {self.largest_difference:.3g}, the mean '
                f'{self.mean_difference:.3g}, the spread {self.spread:.3g}, '
                f'of {self.images} images' + (
                    f'. {moved_weights} weights of -128 would be one step '
                    'from it: train it with the option target, or with '
                    'weight=dict(narrow_range=True)' if moved_weights else
                    ''))


@torch.no_grad()
def measure_parity(trained: nn.Module,
                   exported: Sequence[Callable[[Tensor], Any]],
                   batches: Iterable[Batch]) -> list[Parity]:
    """Run the trained model and exported ones on all batches.

    Args:
        trained (nn.Module): The trained model, in eval mode. Axis 1 of its
            output holds the classes, if there is more than one; of several
            outputs the distances alone are measured.
        exported (Sequence[Callable]): Each from inputs to outputs.
        batches (Iterable[Batch]): What to run them on.

    Returns:
        list[Parity]: The comparison with each exported model.
    """
    images, sizes, tallies = 0, set(), None
    for inputs, labels in batches:
        images += len(inputs)
        sizes.add(len(inputs))
        ours = tensors_of(trained(inputs))
        if tallies is None:
            tallies = [[_Tally(len(ours) == 1) for _ in ours]
                       for _ in exported]
        for run, each in zip(exported, tallies):
            theirs = tensors_of(run(inputs))
            for tally, own, other in zip(each, ours, theirs, strict=True):
                tally.add(own, other, labels)
    assert tallies is not None, 'no batch'
    return [replace(_worst([tally.parity(images) for tally in each]),
                    batches=tuple(sorted(sizes))) for each in tallies]


class _Tally:
    """Counts of one output over batches, which need not be kept.

    Args:
        has_classes (bool): Whether axis 1 may hold classes.
    """

    def __init__(self, has_classes: bool) -> None:
        self.has_classes = has_classes
        self.elements = self.answers = self.other = 0
        self.far = self.far_sum = self.largest = 0.0
        self.shift, self.sum, self.squares = 0.0, 0.0, 0.0
        self.right: list[int] | None = [0, 0]

    def add(self, ours: Tensor, theirs: Tensor,
            labels: Tensor | None) -> None:
        """Count a batch."""
        ours, theirs = ours.double(), theirs.double()
        if not ours.numel():
            return
        if not self.elements:  # of a constant output nothing is left
            self.shift = float(ours.flatten()[0])
        far = (ours - theirs).abs()
        largest = float(ours.abs().max())
        moved = ours - self.shift
        self.elements += ours.numel()
        # max() of Python would lose a NaN.
        self.far = float(torch.tensor([self.far, float(far.max())]).max())
        self.far_sum += float(far.sum())
        self.largest = max(self.largest, largest)
        self.sum += float(moved.sum())
        self.squares += float(moved.square().sum())
        if self.has_classes and ours.ndim > 1 and ours.shape[1] > 1:
            self._add_classes(ours, theirs, labels, ROUNDING * largest)

    def _add_classes(self, ours: Tensor, theirs: Tensor,
                     labels: Tensor | None, rounding: float) -> None:
        classes = [x.argmax(1, keepdim=True) for x in (ours, theirs)]
        lost = ours.amax(1, keepdim=True) - ours.gather(1, classes[1])
        self.answers += lost.numel()
        self.other += int((lost > rounding).sum())
        if labels is None or ours.ndim > 2:
            self.right = None
        elif self.right is not None:
            self.right = [known + int((c[:, 0] == labels).sum())
                          for known, c in zip(self.right, classes)]

    def parity(self, images: int) -> Parity:
        """What was counted, of so many images."""
        count = max(self.elements, 1)
        variance = self.squares / count - (self.sum / count)**2
        spread = math.sqrt(max(variance, 0.0))
        top1 = [None, None] if not self.answers or self.right is None else [
            100 * right / images for right in self.right]
        return Parity(
            images, self.far, self.far_sum / count,
            spread if spread > CONSTANT * self.largest else self.largest,
            self.answers, self.other, *top1)


def _worst(outputs: list[Parity]) -> Parity:
    """That of the output that differs most for its spread, and all."""
    if len(outputs) == 1:
        return outputs[0]

    def badness(parity: Parity) -> float:
        if not math.isfinite(parity.largest_difference):
            return math.inf
        return parity.mean_difference / (parity.spread or 1.0)

    return replace(max(outputs, key=badness), outputs=tuple(outputs))


def compare_batch_of(size: int, model: nn.Module,
                     exported: Callable[[Tensor], Any], example: Tensor,
                     known: Parity) -> None:
    """Compare two models with so many images in a batch.

    Args:
        size (int): How many.
        model (nn.Module): The trained model, in eval mode.
        exported (Callable): The exported one, from inputs to outputs.
        example (Tensor): Images, (N, ...), any number of them.
        known (Parity): The comparison on all images.

    Raises:
        ValueError: If the trained model takes no such batch.
        ParityError: If the exported one answers otherwise.
    """
    images = some_images(example, size)
    try:
        with torch.no_grad():
            model(images)
    except Exception as error:
        raise ValueError(
            f'not exported: {type(model).__name__} itself takes no batch of '
            f'{size}: {error}. {WAY_OUT}') from error
    try:
        found, = measure_parity(model, [exported], [(images, None)])
    except Exception as error:
        raise ParityError(
            f'not exported: with a batch of {size} the file fails: {error}. '
            f'{WAY_OUT}') from error
    for number, (here, before) in enumerate(zip(
            found.outputs or [found], known.outputs or [known])):
        limit = MEAN_DIFFERENCE * before.spread
        if here.mean_difference <= limit:
            continue
        with torch.no_grad():
            # These images may be ones that differ by more than the others do.
            pair = [tensors_of(run(example))[number]
                    for run in (exported, model)]
        limit += some_images((pair[0] - pair[1]).abs(), size).mean().item()
        if not here.mean_difference <= limit:
            raise ParityError(
                f'not exported: with a batch of {size} outputs differ by '
                f'{here.mean_difference:.3g} on average, of a spread of '
                f'{before.spread:.3g}. {WAY_OUT}')
