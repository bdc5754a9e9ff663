"""onnxruntime, as exported models are run and timed in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from .trace import INPUT


def open_session(model: bytes,
                 unpack: bool = False) -> Callable[[Tensor], Tensor]:
    """Open a model in onnxruntime on the CPU, with torch's thread count.

    Args:
        model (bytes): The content of an ONNX file.
        unpack (bool): Whether weights become float as the file is opened,
            instead of integer kernels where there are some and at every call
            elsewhere. Defaults to False, as onnxruntime does it.

    Returns:
        Callable: From an input to the model's output.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Initializers of weights that fused away are no news.
    options.log_severity_level = 3
    if unpack:
        options.add_session_config_entry('session.disable_quant_qdq', '1')
    session = onnxruntime.InferenceSession(
        model, options, providers=['CPUExecutionProvider'])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])

    return run


def latencies(runs: list[Callable[[Tensor], Tensor]], x: Tensor,
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
