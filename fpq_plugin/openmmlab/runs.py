"""A Runner's train, val and test: refused, what they attach, their end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from .._compat.versions import HAS_CUSTOM_OPS
from ..convert import find_wrapper, noise_clock
from ..distillation import Distiller, with_share
from ..distillation.compared import logits_layer
from ..layer_table import LayerTable
from ..layers import quantized_layers
from ..optimizer_watch import bound_steps
from ..options import FLOAT_BITS, type_name
from ..recipe import Recipe
from .config_checks import check_config
from .guards import (
    FrozenParts,
    RunawaySteps,
    explain_non_finite,
    non_finite,
    refuse_averaging_hooks,
)
from .model_families import (
    behind_proposals,
    has_logits,
    is_loss_mode,
    teacher_forward,
    unwrap,
)

_running: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


class RunAware(Hook):
    """A hook that is told of the beginning and the end of a run.

    MMEngine calls no hook before it builds the optimizer, nor at an error.
    """

    def check_run(self, runner: Any, verb: str) -> None:
        """Refuse a run, before anything is changed.

        Args:
            runner (Runner): The runner, of any kind.
            verb (str): 'train', 'val' or 'test'.
        """

    def close(self) -> None:
        """End what a training attached, however it ended."""


def before_run(runner: Any, verb: str) -> None:
    """Look at a Runner that is about to train, validate or test."""
    check_config(runner)
    for hook in runner.hooks:
        if isinstance(hook, RunAware):
            hook.check_run(runner, verb)
    _running.setdefault(runner, []).append(verb)


def after_run(runner: Any, verb: str) -> None:
    """End the training of every hook, after it or after an error."""
    if _running.get(runner):
        _running[runner].pop()
    # One that a hook starts in the midst of a training does not end it.
    if 'train' in _running.get(runner, ()):
        return
    for hook in runner.hooks:
        if isinstance(hook, RunAware):
            hook.close()


def is_training(runner: Runner) -> bool:
    """Whether ``runner.train()`` has begun, and has built the optimizer."""
    verbs = _running.get(runner)
    return (not verbs or verbs[-1] == 'train') and isinstance(
        runner.optim_wrapper, OptimWrapper)


def refuse_other_runner(runner: Runner) -> None:
    """Refuse a Runner that loads the weights before its hooks see the model.

    Raises:
        TypeError: Naming the kind of Runner, and the one to take.
    """
    if not isinstance(runner, Runner):
        raise TypeError(
            f'FPQHook works in mmengine.runner.Runner; a '
            f'{type(runner).__name__} builds its model, optimizer and '
            "strategy in another order. Leave out runner_type, or set "
            "runner_type='Runner'")


def refuse_unfit_training(runner: Runner) -> None:
    """Refuse a training with parts that change the model under FPQ.

    Args:
        runner (Runner): The runner, before it trains.

    Raises:
        ValueError: Naming the option, the wrapper or the hook.
        ImportError: If the config's ``compile`` needs a newer torch.
    """
    _refuse_wrapper(runner)
    refuse_averaging_hooks(runner.hooks)
    if runner.cfg.get('efficient_conv_bn_eval'):
        raise ValueError(
            'efficient_conv_bn_eval: MMEngine puts another forward into the '
            'convolutions before batch norms, which passes the quantizers '
            'by. Leave the option out, for the training with FPQ')
    _refuse_unsavable_optimizer(runner)
    if runner.cfg.get('compile') and not HAS_CUSTOM_OPS:
        runner.logger.warning(
            'FPQ: compile breaks the graph at every noise below torch 2.4')


def _refuse_wrapper(runner: Runner) -> None:
    model = runner.model
    kind = type(model).__name__
    if not is_model_wrapper(model):
        return
    mro = {each.__name__ for each in type(model).__mro__}
    if 'FullyShardedDataParallel' in mro:
        raise ValueError(
            f'model_wrapper_cfg: {kind} shards the parameters before FPQ '
            'sees the layers. Use MMDistributedDataParallel, the default')
    inner = find_wrapper(unwrap(model))
    if inner is not None:
        raise ValueError(
            f'model_wrapper_cfg: {kind} wraps parts of the model '
            f'({inner[0]}) before FPQ sees the layers. Use '
            'MMDistributedDataParallel, the default')


def _refuse_unsavable_optimizer(runner: Runner) -> None:
    # MMEngine 0.10.7 saves on the first process alone, without FPQ as well.
    cfg = runner.cfg.get('optim_wrapper') or {}
    options = cfg.get('optimizer') if isinstance(cfg, dict) else None
    kind = options.get('type', '') if isinstance(options, dict) else ''
    sharded = (type_name(kind).rpartition('.')[2]
               == 'ZeroRedundancyOptimizer')
    if sharded and get_world_size() > 1 and any(
            isinstance(hook, CheckpointHook) and hook.save_optimizer
            for hook in runner.hooks):
        raise ValueError(
            'ZeroRedundancyOptimizer: each process has a part of its state, '
            'and MMEngine, which saves on the first alone, would wait for '
            'ever. Set default_hooks.checkpoint.save_optimizer=False')


# -- what one training attaches, and lets go of at its end ----------------

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
        teacher_layer (str, optional): Its layer of the logits, if it is of
            another architecture.
        seed (int): The run's seed.
        rank (int): This process's rank.
        distill_skip (Sequence[str]): Name patterns of layers that are not
            distilled.
        optimizers (Sequence[Optimizer]): What trains the model.
        warn (Callable): Told of layers that cannot be distilled, and of
            steps that run away.

    Attributes:
        distiller (Distiller, optional): What compares the two models.
    """

    def __init__(self, model: nn.Module, recipe: Recipe,
                 teacher: nn.Module | None, teacher_layer: str | None,
                 seed: int, rank: int,
                 distill_skip: Sequence[str],
                 optimizers: Sequence[Optimizer],
                 warn: Callable[[str], Any]) -> None:
        self._clock = noise_clock(model)
        if self._clock is not None:
            self._clock.seed, self._clock.rank = seed, rank
        self.distiller: Distiller | None = None
        if teacher is not None:
            self.distiller = Distiller(
                model,
                teacher,
                recipe.losses(has_logits(model, distill_skip)),
                run_teacher=teacher_forward(model),
                condition=is_loss_mode,
                warn=warn,
                skip=distill_skip,
                teacher_layer=teacher_layer,
                own_hooks=False)
        self._warn: Callable[[str], Any] | None = warn
        self._means = recipe.objective == 'mean'
        self._runaway = RunawaySteps(model, warn)
        self._frozen = FrozenParts(model, warn)
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(
                self._after, with_kwargs=True, always_call=True),
        ]
        for optimizer in optimizers:
            bound_steps(optimizer)  # a compiled step looks at none

    def start_iteration(self, iteration: int, iterations: int | None) -> None:
        """Tell SFP and the losses which iteration begins, and of how many."""
        if self._clock is not None:
            self._clock.start_iteration(iteration)
        if self.distiller is None:
            return
        if iterations:
            self.distiller.set_progress(iteration, iterations)
        elif self._warn and any(each.fades for each in
                                self.distiller.criteria):
            self.distiller.set_progress(0, 1)
            self._warn('FPQ: the train loop does not tell its iterations '
                       '(max_iters), so no loss fades: CSD stays as it '
                       'begins, and what fades in stays at 0')
            self._warn = None

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
        losses = self.distiller.layer_losses('csd') if self.distiller else {}
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
            if self._means:
                share = self.distiller.task_share()
                output.update({
                    name: with_share(value, share)
                    for name, value in output.items() if 'loss' in name
                })
        bad = non_finite(output) if isinstance(output, dict) else []
        if bad:
            self.close()  # explaining runs the model again
            raise FloatingPointError(
                explain_non_finite(bad, model, args, kwargs))


def undistilled(recipe: Recipe, model: nn.Module,
                log: Callable[[str], Any]) -> list[str]:
    """Patterns of layers that the distillation leaves out.

    Raises:
        ValueError: If a teacher of another architecture has no logits to
            compare.
    """
    picked = behind_proposals(model) if recipe.distillation else []
    skip = [*recipe.distill_skip, *picked]
    if recipe.has_other_teacher() and not has_logits(model, skip) and any(
            loss.layer is None for loss in recipe.losses()):
        raise ValueError(
            'fpq.teacher: one of another architecture is compared by its '
            'logits, and the last layer of this model does not give those of '
            'one softmax, or is not distilled. Leave the config out, or name '
            "the layer, as fpq.distillation=dict(type='LogitKD', "
            "layer='head.fc')")
    if len(recipe.losses(has_logits(model, skip))) < len(recipe.losses()):
        last = logits_layer(list(quantized_layers(model)))
        log(f'FPQ distills by CSD alone: that {last} gives the logits of one '
            "softmax is known of mmpretrain's classifiers alone, and where it "
            'is distilled. If it does, distill them as well: distillation='
            f'{_with_layer(recipe.distillation or (), last)}')
    if picked:
        log(f'FPQ does not distill {", ".join(picked)}: student and teacher '
            'work on other proposals there')
    return skip


def _with_layer(losses: Iterable[dict], layer: str) -> list[dict]:
    """Losses of the logits told their layer."""
    return [{**cfg, 'layer': layer} if cfg['type'] == 'LogitKD' else cfg
            for cfg in losses]
