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
    """Counts training forwards, so that noise is a function of the place.

    A draw's key is a hash of (seed, rank, iteration, forward, layer, call):
    mmengine saves no RNG state, and a resumed run draws what the straight
    run would have drawn. All perturbed layers of a model share one clock.

    Attributes:
        seed (int): The run's seed. Defaults to 0.
        rank (int): The process's rank: ranks draw different noise.
    """

    def __init__(self) -> None:
        self.seed = 0
        self.rank = 0
        self.iteration = 0
        self.forward = 0
        self._ticks = 0

    def seek(self, iteration: int) -> None:
        """Go to the start of training iteration ``iteration``."""
        self.iteration = iteration
        self.forward = 0

    def tick(self, model: torch.nn.Module, args: tuple) -> None:
        """Forward pre-hook of the model: the next training forward starts."""
        if model.training:
            self.forward += 1
            self._ticks += 1

    def now(self) -> int:
        """A number of the running forward, never the same again."""
        return self._ticks

    def key(self, layer: int, call: int) -> int:
        """64-bit key of ``layer``'s ``call``-th call in this forward."""
        return mix(self.seed, self.rank, self.iteration, self.forward, layer,
                   call)


def in_backward() -> bool:
    """Whether autograd's engine is running, as in activation checkpointing's
    second forward."""
    return torch._C._current_graph_task_id() != -1
