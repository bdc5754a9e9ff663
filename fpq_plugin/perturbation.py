"""SFP: noise of one quantization step, a function of its place in a run.

On features, and its rival on weights.
"""

from __future__ import annotations

from itertools import count
from weakref import WeakValueDictionary

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ._compat.versions import HAS_CUSTOM_OPS, is_compiling
from .options import is_number


@MODELS.register_module()
class StochasticFeaturePerturbation(nn.Module):
    """Adds uniform noise of one quantization step, now and then.

    Equations (9) and (14): in training, each call draws b ~ Bernoulli(p); if
    b, ``x <- x + d`` with d elementwise uniform on ``[-s/2, s/2]`` and s the
    activation's step, detached. In eval mode it does nothing.

    Args:
        p (float): Probability that a call (or sample) is perturbed, in
            [0, 1]. The paper's best are 0.1 to 0.5. Defaults to 0.1.
        where (str): ``'after'`` the activation's fake quantization (the
            tensor that enters the layer) or ``'before'`` it (a dither).
            Defaults to 'after'.
        granularity (str): ``'call'`` draws b once a call, as the paper does,
            ``'sample'`` once for each index of the first axis. Defaults to
            'call'.

    Raises:
        ValueError: If ``p``, ``where`` or ``granularity`` is none of these.

    Attributes:
        of_weight (bool): Whether it perturbs the weight, not the feature.
    """

    of_weight = False

    def __init__(self,
                 p: float = 0.1,
                 where: str = 'after',
                 granularity: str = 'call') -> None:
        super().__init__()
        if not is_number(p, 0, 1):
            raise ValueError(f'p must be a probability in [0, 1], got {p!r}')
        if where not in ('after', 'before'):
            raise ValueError(f"where must be 'after' or 'before', got "
                             f'{where!r}')
        if granularity not in ('call', 'sample'):
            raise ValueError(f"granularity must be 'call' or 'sample', got "
                             f'{granularity!r}')
        self.p = p
        self.where = where
        self.granularity = granularity
        self.set_clock(NoiseClock(), 0)
        self._number = _number_of(self)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._number = _number_of(self)  # a copy's own

    def set_clock(self, clock: NoiseClock, layer: int) -> None:
        """Give the draws their clock and the layer's number in the model."""
        self.clock = clock
        self.layer = layer
        self._iteration: int | None = None
        self._forward: int | None = None
        self._calls = 0  # in this iteration
        self._calls_in_forward = 0  # in this forward

    def forward(self, x: Tensor, quantizer: nn.Module) -> Tensor:
        """Quantize ``x`` with ``quantizer`` and perturb it.

        Args:
            x (Tensor): Input of the layer, any shape; the first axis holds
                the samples.
            quantizer (nn.Module): The activation's fake quantizer; its
                ``step()`` is s. While ``has_step()`` is False there is no
                noise.

        Returns:
            Tensor: Tensor of ``x``'s shape.
        """
        if not self.training or not quantizer.has_step():
            return quantizer(x)
        step = self.step_along(quantizer, x)
        if self.where == 'before':
            return quantizer(self._perturbed(x, step))
        return self._perturbed(quantizer(x), step)

    def step_along(self, quantizer: nn.Module, x: Tensor) -> Tensor:
        """The step s, broadcasting to ``x``."""
        return quantizer.step()

    def _perturbed(self, x: Tensor, step: Tensor) -> Tensor:
        if is_compiling() and HAS_CUSTOM_OPS:
            return _perturb_in_graph(x, step, self._number)
        return self.perturb_now(x, step)

    def perturb_now(self, x: Tensor, step: Tensor) -> Tensor:
        """``x`` with the noise of this call, drawn as the clock says."""
        return self.perturb(x, step, self.clock.key(self.layer, self._call()))

    def perturb(self, x: Tensor, step: Tensor, key: int) -> Tensor:
        """``x + b d`` of equation (9), with the draws that ``key`` names."""
        chosen = self._draw(x, key)
        if chosen is None:
            return x
        generator = torch.Generator(x.device).manual_seed(mix(key, 1))
        noise = torch.empty_like(x, dtype=step.dtype).uniform_(
            -0.5, 0.5, generator=generator).mul_(step)
        return x + noise.mul_(chosen).to(x.dtype)

    def _draw(self, x: Tensor, key: int) -> Tensor | float | None:
        """b: None for no noise, else a factor that broadcasts to ``x``."""
        if self.granularity == 'call':
            return 1.0 if key / 2**64 < self.p else None
        generator = torch.Generator().manual_seed(mix(key, 2))
        shape = (x.shape[0], ) + (1, ) * (x.dim() - 1)
        chosen = torch.rand(shape, generator=generator) < self.p
        return chosen.to(x.device, torch.float32) if chosen.any() else None

    def _call(self) -> int:
        """This call's number in the running iteration.

        Activation checkpointing runs the forward again during the backward;
        that call gets the number, and so the noise, of the first time.

        Raises:
            RuntimeError: If the layer was called more than once in that
                forward: which call is run again cannot be told.
        """
        if in_backward() and self._calls_in_forward:
            if self._calls_in_forward > 1:
                raise RuntimeError(
                    'activation checkpointing runs a perturbed layer again '
                    f'that was called {self._calls_in_forward} times in one '
                    'forward; set perturbation=None for it in overrides')
            return self._calls - 1
        if self._iteration != self.clock.iterations:
            self._iteration = self.clock.iterations
            self._calls = 0
        if self._forward != self.clock.forwards:
            self._forward = self.clock.forwards
            self._calls_in_forward = 0
        self._calls += 1
        self._calls_in_forward += 1
        return self._calls - 1

    def extra_repr(self) -> str:
        return (f'p={self.p}, where={self.where!r}, '
                f'granularity={self.granularity!r}')


@MODELS.register_module()
class StochasticWeightPerturbation(StochasticFeaturePerturbation):
    """SFP's noise on the quantized weight: what FPQ is compared with.

    In training, each call draws b ~ Bernoulli(p); if b, ``w <- w + d`` with d
    elementwise uniform on ``[-s/2, s/2]`` and s the weight's step, of each
    output channel if it has one.

    Args:
        p (float): Probability that a call is perturbed, in [0, 1]. Defaults
            to 0.1.
        where (str): ``'after'`` the weight's fake quantization or
            ``'before'`` it. Defaults to 'after'.

    Raises:
        ValueError: If ``p`` or ``where`` is none of these.
    """

    of_weight = True

    def __init__(self, p: float = 0.1, where: str = 'after') -> None:
        super().__init__(p, where)

    def step_along(self, quantizer: nn.Module, x: Tensor) -> Tensor:
        return quantizer.along_channels(quantizer.step(), x)


# Whether and what noise a call draws is decided anew each time; traced as
# Python it would break a graph of torch.compile, or be frozen into it. There
# SFP is one operator, which finds its module by number.
_layers: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_numbers = count()


def _number_of(perturbation: nn.Module) -> int:
    number = next(_numbers)
    _layers[number] = perturbation
    return number


def _perturb_by_number(x: Tensor, step: Tensor, number: int) -> Tensor:
    out = _layers[number].perturb_now(x, step)
    return x.clone() if out is x else out


if HAS_CUSTOM_OPS:
    _perturb_in_graph = torch.library.custom_op(
        'fpq::perturb', _perturb_by_number, mutates_args=(),
        schema='(Tensor x, Tensor step, int number) -> Tensor')
    _perturb_in_graph.register_fake(
        lambda x, step, number: torch.empty_like(x))
    _perturb_in_graph.register_autograd(lambda ctx, grad: (grad, None, None))


# -- the place of a draw: a counter, not a state --------------------------

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
