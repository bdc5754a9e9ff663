"""Sharpness-aware minimization in MMEngine's training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from pytorch_optimizer import SAM
from pytorch_optimizer.optimizer.utils import (
    disable_running_stats,
    enable_running_stats,
)
from torch import Tensor, nn

from .model_families import unwrap


@OPTIM_WRAPPERS.register_module()
class SAMOptimWrapper(OptimWrapper):
    """SAM (Foret et al., ICLR 2021) around the config's optimizer.

    Each step runs the model twice: the gradient at the weights w leads to
    ``w + rho g / |g|``, and the gradient there updates w. The second run
    leaves batch norm's running statistics alone. The SAM is
    pytorch-optimizer's.

    Args:
        rho (float): Radius of the neighbourhood. Defaults to 0.05.
        **kwargs: As for :class:`mmengine.optim.OptimWrapper`.

    Raises:
        ValueError: If ``rho`` is not positive, or gradients shall be
            accumulated.
    """

    def __init__(self, rho: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not rho > 0:
            raise ValueError('optim_wrapper.rho: must be > 0, got '
                             f'{rho!r}')
        if self._accumulative_counts != 1:
            raise ValueError(
                'optim_wrapper.accumulative_counts: SAM needs the gradient '
                'of one batch at two places; set it to 1')
        self.sam = SAM(
            self.optimizer.param_groups, lambda groups: self.optimizer,  # type: ignore[arg-type]
            rho=rho)
        self._model: Any = None
        self._inputs: tuple[tuple, dict] = ((), {})

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Remember what the model is called with."""
        self._model = model
        handle = model.register_forward_pre_hook(
            self._remember, with_kwargs=True)
        try:
            with super().optim_context(model):
                yield
        finally:
            handle.remove()

    def update_params(self,
                      loss: Tensor,
                      step_kwargs: dict | None = None,
                      zero_kwargs: dict | None = None) -> None:
        """Both of SAM's steps; ``loss`` is that at the current weights."""
        self.backward(loss)
        # A resumed optimizer has new ones.
        self.sam.param_groups = self.optimizer.param_groups
        self.sam.state = self.optimizer.state
        self.sam.first_step()
        self.zero_grad(**(zero_kwargs or {}))
        disable_running_stats(self._model)
        try:
            args, kwargs = self._inputs
            losses = self._model(*args, **kwargs)
        finally:
            enable_running_stats(self._model)
        self.backward(unwrap(self._model).parse_losses(losses)[0])
        self._return_to_old_weights()
        self.step(**(step_kwargs or {}))
        self.zero_grad(**(zero_kwargs or {}))
        self._inputs = ((), {})

    def _remember(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._inputs = (args, kwargs)

    @torch.no_grad()
    def _return_to_old_weights(self) -> None:
        """Undo the first step, and leave nothing of it in the state."""
        for group in self.sam.param_groups:
            for parameter in group['params']:
                old = self.sam.state[parameter].pop('old_p', None)
                if old is not None:
                    parameter.copy_(old)
