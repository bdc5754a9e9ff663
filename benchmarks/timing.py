"""Timing of several steps side by side."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable

import torch

Step = Callable[[], object]


def interleaved(steps: dict[str, Step], rounds: Iterable
                ) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Each step once in each round, so that a busy machine slows all alike.

    Args:
        steps (dict[str, Callable]): What to time.
        rounds (Iterable): As long as there shall be rounds.

    Returns:
        tuple: Seconds, and page faults, of each step in each round.
    """
    times = {name: [] for name in steps}
    faults = {name: [] for name in steps}
    for _ in rounds:
        for name, step in steps.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            times[name].append(seconds(step))
            faults[name].append(
                resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return times, faults


def seconds(step: Step) -> float:
    """Wall time of a call, a GPU's work included."""
    _synchronize()
    start = time.perf_counter()
    step()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
