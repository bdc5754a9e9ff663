"""What one training attaches to a model, and lets go of at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..convert import noise_clock
from ..distillation import Distiller
from ..layer_table import LayerTable
from ..options import FLOAT_BITS
from ..recipe import Recipe
from .guards import FrozenParts, RunawaySteps, explain_non_finite, non_finite
from .model_families import behind_proposals, is_loss_mode, teacher_forward


class TrainingSession:
    """SFP's clock, the distiller and the guards, around each forward.

    One pair of forward hooks on the model does, in this order: the teacher
    runs (before); the distiller's losses join the model's; all losses are
    looked at (after). :meth:`close` removes whatever was attached.

    Args:
        model (nn.Module): The student, converted and calibrated, without a
            wrapper.
        recipe (Recipe): The options.
        teacher (nn.Module, optional): The teacher; None: no distillation.
        seed (int): The run's seed.
        rank (int): This process's rank.
        distill_skip (Sequence[str]): Name patterns of layers that are not
            distilled.
        warn (Callable): Told of layers that cannot be distilled, and of
            steps that run away.

    Attributes:
        distiller (Distiller, optional): What compares the two models.
    """

    def __init__(self, model: nn.Module, recipe: Recipe,
                 teacher: nn.Module | None, seed: int, rank: int,
                 distill_skip: Sequence[str],
                 warn: Callable[[str], Any]) -> None:
        self._clock = noise_clock(model)
        if self._clock is not None:
            self._clock.seed, self._clock.rank = seed, rank
        self.distiller: Distiller | None = None
        if teacher is not None:
            self.distiller = Distiller(
                model,
                teacher,
                recipe.losses(),
                run_teacher=teacher_forward(model),
                condition=is_loss_mode,
                warn=warn,
                skip=distill_skip,
                own_hooks=False)
        self._runaway = RunawaySteps(model, warn)
        self._frozen = FrozenParts(model, warn)
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(
                self._after, with_kwargs=True, always_call=True),
        ]

    def start_iteration(self, iteration: int) -> None:
        """Tell SFP which training iteration begins."""
        if self._clock is not None:
            self._clock.start_iteration(iteration)

    def distilled_nothing(self) -> bool:
        """Whether the last training forward compared no layer, and should."""
        return self.distiller is not None and not self.distiller.has_loss()

    def look_at_steps(self) -> None:
        """Warn of steps that have run away, or moved though frozen."""
        self._runaway.look()
        self._frozen.look()

    def summary(self, table: LayerTable) -> str:
        """What was quantized, and which layer is farthest from the teacher.

        Args:
            table (LayerTable): The layers.
        """
        full = LayerTable(
            type(row)(row.name, row.type, FLOAT_BITS, FLOAT_BITS, row.shape,
                      row.why) for row in table)
        text = (f'FPQ quantized {len(table.quantized())} of {len(table)} '
                f'layers; weights {table.weight_bytes() / 1e6:.3f} MB, '
                f'{full.weight_bytes() / 1e6:.3f} MB in float32')
        losses = self.distiller.layer_losses() if self.distiller else {}
        if not losses:
            return text
        far = max(losses, key=lambda name: float(losses[name]))
        return (f'{text}; the layer farthest from the teacher is {far} (loss '
                f'{float(losses[far]):.4f} in the last iteration)')

    def close(self) -> None:
        """Let go of model and teacher; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        if self.distiller is not None:
            self.distiller.detach()
            self.distiller = None

    def _before(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.distiller is not None:
            self.distiller.begin(model, args, kwargs)

    def _after(self, model: nn.Module, args: tuple, kwargs: dict,
               output: Any) -> None:
        if self.distiller is not None:
            self.distiller.end(output)
        if output is None or not model.training:  # None: it raised an error
            return
        if (self.distiller is not None and is_loss_mode(kwargs)
                and torch.is_grad_enabled()):
            output.update({
                f'loss_{label}': loss
                for label, loss in self.distiller.losses().items()
            })
        bad = non_finite(output) if isinstance(output, dict) else []
        if bad:
            self.close()  # explaining runs the model again
            raise FloatingPointError(
                explain_non_finite(bad, model, args, kwargs))


def undistilled(recipe: Recipe, model: nn.Module,
                log: Callable[[str], Any]) -> list[str]:
    """Patterns of layers that the distillation leaves out."""
    picked = behind_proposals(model) if recipe.distillation else []
    if picked:
        log(f'FPQ does not distill {", ".join(picked)}: student and teacher '
            'work on other proposals there')
    return [*recipe.distill_skip, *picked]
