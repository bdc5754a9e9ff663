"""How long files take, each called in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from torch import Tensor

Run = Callable[[Tensor], Any]
"""From an input to a model's output, a tuple if there are several."""


def latencies(runs: list[Run], x: Tensor,
              repeats: int = 20) -> list[float]:
    """Median seconds of each on ``x``, taken in turn so that all are equal.

    Args:
        runs (list): What to time.
        x (Tensor): The input.
        repeats (int): Calls of each that count. Defaults to 20.

    Returns:
        list[float]: Seconds for one call of each.
    """
    times: list[list[float]] = [[] for _ in runs]
    for number in range(repeats + 3):
        for run, seconds in zip(runs, times):
            start = time.perf_counter()
            run(x)
            if number > 2:
                seconds.append(time.perf_counter() - start)
    return [median(seconds) for seconds in times]
