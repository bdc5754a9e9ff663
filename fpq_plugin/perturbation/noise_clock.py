"""Where the noise of a training step comes from: a counter, not a state."""

from __future__ import annotations

import torch

_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """Hash integers to 64 bits (SplitMix64's finalizer after each word)."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


class NoiseClock:
    """Names the place of a draw, so that noise is a function of the place.

    A draw's key is a hash of (seed, rank, iteration, layer, the layer's call
    in this iteration): mmengine saves no RNG state, and a resumed run draws
    what the straight run would have drawn. All perturbed layers of a model
    share one clock.

    Attributes:
        seed (int): The run's seed. Defaults to 0.
        rank (int): The process's rank: ranks draw different noise.
        iteration (int): The training iteration. Defaults to 0.
        iterations (int): How often :meth:`start_iteration` was called.
        forwards (int): How many training forwards have started.
    """

    def __init__(self) -> None:
        self.seed = 0
        self.rank = 0
        self.iteration = 0
        self.iterations = 0
        self.forwards = 0

    def start_iteration(self, iteration: int) -> None:
        """Go to the start of training iteration ``iteration``."""
        self.iteration = iteration
        self.iterations += 1

    def start_forward(self, model: torch.nn.Module, args: tuple) -> None:
        """Forward pre-hook of the model: the next training forward starts."""
        if model.training:
            self.forwards += 1

    def key(self, layer: int, call: int) -> int:
        """64-bit key of ``layer``'s ``call``-th call in this iteration."""
        return mix(self.seed, self.rank, self.iteration, layer, call)


def in_backward() -> bool:
    """Whether autograd's engine is running, as in activation checkpointing's
    second forward."""
    return torch._C._current_graph_task_id() != -1
