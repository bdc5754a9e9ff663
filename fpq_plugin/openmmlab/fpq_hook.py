"""FPQ in the life of an MMEngine Runner."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..calibrate import leave_uncalled, uninitialized
from ..convert import (
    DEFAULT_ACTIVATION,
    DEFAULT_PERTURBATION,
    DEFAULT_WEIGHT,
    check_settings,
    convert,
    is_float,
    noise_clock,
)
from ..distillation import Distiller
from ..layer_table import LayerTable
from ..layers import get_backend, quantized_layers
from ..options import (
    is_number,
    known_options,
    refuse_no_patterns,
    refuse_unknown,
    refuse_unmatched,
)
from ..param_groups import separate_scales
from ..perturbation import NoiseClock
from ..quantizers import Quantizer
from ..state import (
    bare_state,
    first_few,
    float_state,
    quantizer_bits,
    quantizer_state,
    refuse_other_architecture,
    refuse_other_quantization,
)
from ..version import __version__
from .calibration import DEFAULT_CALIBRATION, RunCalibration
from .config_checks import warn_of_unread_options
from .criteria import criteria
from .export_run import ExportAtEnd
from .guards import NonFiniteGuard, RunawaySteps
from .model_families import (
    behind_proposals,
    is_loss_mode,
    refuse_averaged,
    targets,
    teacher_forward,
)
from .teacher import RunTeacher, fill_from_file, starts_from_teacher

DEFAULT_DISTILLATION = dict(type='CSDLoss', loss_weight=1.0)


@HOOKS.register_module()
class FPQHook(Hook):
    """Trains the Runner's model with feature-perturbed quantization.

    Put it under ``default_hooks`` of any config whose weights come from a
    full-precision checkpoint. The Runner's model is converted in place
    before training, validation and test alike; in training the teacher, the
    calibration, SFP and CSD join (Algorithm 1, equation (22)). The added
    loss is ``loss_csd``; that of LogitKD is ``loss_kd``.

    Args:
        backend (str): Whose quantizers and layers: 'torch_ao' or 'brevitas'
            (needs the extra of that name). Defaults to 'torch_ao'.
        weight (dict, optional): The weights' fake quantizer; None or
            ``bits=32``: float. Defaults to LSQ, 4 bits.
        activation (dict, optional): The activations' fake quantizer; None or
            ``bits=32``: float. Defaults to LSQ, 4 bits. With both off and no
            overrides the hook does nothing.
        perturbation (dict, optional): SFP; None: off. Defaults to p = 0.1.
        distillation (dict | list[dict], optional): CSD, or another loss of
            the teacher's outputs, or several; None: off. Defaults to CSD
            with lambda 1.
        teacher (str, optional): Full-precision checkpoint of the teacher.
            Defaults to None: the full-precision weights that the run starts
            from; a resumed run finds them again in its work directory.
        calibration (dict): ``num_images``: training images that set the
            first steps and zero points. Defaults to 100.
        first_last_bits (int, optional): Bits of the first and last quantized
            layer; None: no exception for them. Defaults to 8.
        skip (Sequence[str]): Name patterns of layers that stay float.
        overrides (dict, optional): From name pattern to ``weight``,
            ``activation``, ``perturbation`` settings for those layers.
        attention (dict, optional): Fake quantizers of the operands of
            attention's products of activations (q k^T and attn v). Defaults
            to None: float.
        distill_skip (Sequence[str]): Name patterns of layers that are
            quantized but not distilled, besides those behind proposals
            (:func:`fpq_plugin.openmmlab.model_families.behind_proposals`).
        scale_lr_mult (float): Learning rate of the quantizers' parameters
            over that of the group they would be in. Defaults to 1.0.
        export (str, optional): ONNX file to write at the end of training, in
            the work directory. Defaults to None.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If an option is unknown or has a wrong value.
        ImportError: If what the backend needs is not installed.
    """

    # Before EMAHook (NORMAL), which copies the model in its before_run.
    priority = 'VERY_HIGH'

    def __init__(self,
                 backend: str = 'torch_ao',
                 weight: dict | None = DEFAULT_WEIGHT,
                 activation: dict | None = DEFAULT_ACTIVATION,
                 perturbation: dict | None = DEFAULT_PERTURBATION,
                 distillation: dict | list[dict]
                 | None = DEFAULT_DISTILLATION,
                 teacher: str | None = None,
                 calibration: dict = DEFAULT_CALIBRATION,
                 first_last_bits: int | None = 8,
                 skip: Sequence[str] = (),
                 overrides: dict | None = None,
                 attention: dict | None = None,
                 distill_skip: Sequence[str] = (),
                 scale_lr_mult: float = 1.0,
                 export: str | None = None,
                 **unknown: Any) -> None:
        refuse_unknown('fpq', unknown, known_options(FPQHook))
        if teacher is not None and not isinstance(teacher, str):
            raise TypeError('fpq.teacher: must be the path or URL of a '
                            f'checkpoint, got {teacher!r}')
        if not is_number(scale_lr_mult, 0):
            raise ValueError('fpq.scale_lr_mult: must be a number >= 0, got '
                             f'{scale_lr_mult!r}')
        self.settings: dict[str, Any] = dict(
            weight=weight,
            activation=activation,
            perturbation=perturbation,
            first_last_bits=first_last_bits,
            skip=skip,
            overrides=overrides,
            backend=backend,
            attention=attention)
        check_settings(**self.settings)
        refuse_no_patterns('fpq.distill_skip', distill_skip)
        self.distill_skip = distill_skip
        self.active = not is_float(weight, activation, overrides)
        self.criteria = criteria(distillation)
        self._calibration = RunCalibration(calibration)
        self.teacher = teacher
        self.scale_lr_mult = scale_lr_mult
        self._export = ExportAtEnd(export, self.active)

        self._run_teacher = RunTeacher(teacher)
        self._fill_student = False
        self._clock: NoiseClock | None = None
        self._optim_wrapper: OptimWrapper | None = None
        self._distiller: Any = None
        self._guard: Any = None
        self._runaway: Any = None
        self._loss_handle: Any = None
        self._table = LayerTable()

    def convert(self, model: nn.Module) -> LayerTable:
        """Quantize ``model`` in place as this hook's options say.

        Raises:
            ValueError: If the model averages its own weights.
        """
        refuse_averaged(model)
        backend = get_backend(self.settings['backend'])
        skip = [*self.settings['skip'], *targets(model, backend)]
        return convert(model, **{**self.settings, 'skip': skip})

    # -- before_run: training, validation and test ------------------------

    def before_run(self, runner: Runner) -> None:
        """Convert the model; for training, rebuild what was built on it."""
        if not self.active:
            runner.logger.info('FPQ is off: weight and activation are float')
            return
        model = _inner(runner.model)
        training = self._training(runner)
        if training:
            if not runner._has_loaded:
                self._fill_student = starts_from_teacher(
                    runner, model, self.teacher)
            if self.criteria and self._run_teacher.model is None:
                self._run_teacher.copy(model)
            warn_of_unread_options(runner, FPQHook)
        if not quantized_layers(model):
            self._table = self.convert(model)
            runner.logger.info(
                f'FPQ {__version__} quantizes {len(self._table.quantized())} '
                f'of {len(self._table)} layers:\n{self._table}')
            if is_model_wrapper(runner.model):
                # The old wrapper's reducer knows nothing of the scales.
                runner.model = model
                runner.model = runner.wrap_model(
                    copy.deepcopy(runner.cfg.get('model_wrapper_cfg')), model)
        refuse_unmatched('fpq.distill_skip', self.distill_skip,
                         list(quantized_layers(model)))
        if training and runner.optim_wrapper is not self._optim_wrapper:
            self._rebuild_optimizer(runner, model)

    def _rebuild_optimizer(self, runner: Runner, model: nn.Module) -> None:
        """Optimizer and schedulers again, now that the scales exist."""
        if runner.cfg.get('optim_wrapper') is None:
            raise ValueError(
                'FPQ rebuilds the optimizer from the config, and this Runner '
                'has none: build it with Runner.from_cfg(cfg), or pass '
                'cfg=dict(optim_wrapper=..., param_scheduler=...) to it')
        runner.optim_wrapper = runner.build_optim_wrapper(
            copy.deepcopy(runner.cfg.optim_wrapper))
        runner.param_schedulers = None
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        optimizers = [w.optimizer for w in _wrappers(runner.optim_wrapper)]
        separate_scales(model, optimizers, self.scale_lr_mult)
        schedulers = copy.deepcopy(runner.cfg.get('param_scheduler'))
        if schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(schedulers)
        self._optim_wrapper = runner.optim_wrapper

    # -- load_or_resume ---------------------------------------------------

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse a checkpoint that this run cannot use, before loading."""
        if not self.active:
            return
        model = _inner(runner.model)
        state = bare_state(checkpoint)
        training = self._training(runner)
        what = f'the checkpoint {runner._load_from or "in the work directory"}'
        if training:
            what = f'{"resume" if runner._resume else "load_from"}: {what}'
        mend = {
            (True, True): 'Resume with the config that made it, or start '
            'anew from it with load_from and without --resume.',
            (True, False): 'Use the bits it was trained with, or start from '
            'the full-precision checkpoint.',
            (False, False): 'Test a checkpoint with the config that it was '
            'trained with; a full-precision one with a config without FPQ.',
        }[training, training and runner._resume]
        if training and not runner._resume and not quantizer_bits(state):
            refuse_other_architecture(float_state(model), state, what)
            # So that mmengine does not warn of hundreds of missing keys.
            checkpoint.get('state_dict', checkpoint).update(
                quantizer_state(model))
            return
        refuse_other_quantization(model, state, what, mend)
        if training and not runner._resume:
            runner.logger.warning(
                f'FPQ: {what} is a quantized model: training goes on from its '
                'weights and scales and, unless fpq.teacher names another, '
                'with its teacher. To start anew, set load_from to the '
                'full-precision checkpoint')
        meta = checkpoint.get('meta', {}).get('fpq', {})
        self._run_teacher.student_loaded(meta.get('teacher'))

    # -- before_train -----------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        """Fill the teacher, calibrate, attach SFP's clock and CSD."""
        if not self.active:
            return
        model = _inner(runner.model)
        if self._fill_student and self.teacher is not None:
            runner.logger.info('FPQ: the student starts from fpq.teacher')
            fill_from_file(model, self.teacher, 'fpq.teacher')
        if self.criteria:
            self._run_teacher.settle(runner, model)
        if uninitialized(model):
            self._calibration.run(runner, model)
        self._export.check(runner, model)
        self._tell_uncalled(runner, model)
        self._count_micro_batches(runner, model)
        self._clock = noise_clock(model)
        if self._clock is not None:
            self._clock.seed, self._clock.rank = runner.seed or 0, get_rank()
        if self.criteria:
            self._distiller = Distiller(
                model,
                self._run_teacher.model,
                self.criteria,
                run_teacher=teacher_forward(model),
                condition=is_loss_mode,
                warn=runner.logger.warning,
                skip=self._undistilled(runner, model))
            self._loss_handle = model.register_forward_hook(
                self._add_loss, with_kwargs=True)
        self._guard = NonFiniteGuard(model)
        self._runaway = RunawaySteps(model, runner.logger.warning)

    def _undistilled(self, runner: Runner, model: nn.Module) -> list[str]:
        """Patterns of layers that CSD leaves out."""
        picked = behind_proposals(model)
        if picked:
            runner.logger.info(
                f'FPQ does not distill {", ".join(picked)}: student and '
                'teacher work on other proposals there')
        return [*self.distill_skip, *picked]

    def _count_micro_batches(self, runner: Runner, model: nn.Module) -> None:
        """Tell the quantizers of gradient accumulation (LSQ's n)."""
        wrappers = _wrappers(runner.optim_wrapper)
        for module in model.modules():
            if isinstance(module, Quantizer):
                module.micro_batches = max(
                    w._accumulative_counts for w in wrappers)

    def _tell_uncalled(self, runner: Runner, model: nn.Module) -> None:
        """Leave float, and name, the layers that no forward calls."""
        names = leave_uncalled(model)
        self._table = self._table.left_float(names, 'no forward calls it')
        if names:
            runner.logger.warning(
                'FPQ leaves float the layers that no forward calls: '
                f'{", ".join(names)}. (If a forward uses their weights '
                'instead, register_weight_reader mends it.)')

    # -- iterations -------------------------------------------------------

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Tell SFP which iteration this is."""
        if self._clock is not None:
            self._clock.seek(runner.iter)

    def _add_loss(self, model: nn.Module, args: tuple, kwargs: dict,
                  losses: Any) -> None:
        if model.training and is_loss_mode(kwargs):
            losses.update({
                f'loss_{label}': loss
                for label, loss in self._distiller.losses().items()
            })

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        """Look at the parameters if a checkpoint is due.

        Raises:
            FloatingPointError: If one is not finite.
            RuntimeError: If the iteration distilled nothing.
        """
        if self._distiller is not None and not self._distiller.has_loss():
            raise RuntimeError(
                'FPQ distilled nothing in this iteration: the train_step of '
                f'{type(_inner(runner.model)).__name__} does not call its '
                "forward with mode='loss'. Set distillation=None.")
        if self.active and any(
                isinstance(hook, CheckpointHook) and not hook.by_epoch
                and self.every_n_train_iters(runner, hook.interval)
                for hook in runner.hooks):
            self._refuse_non_finite(runner)
            self._runaway.look()

    def after_train_epoch(self, runner: Runner) -> None:
        """Look at the parameters before CheckpointHook removes old files.

        Tells of steps that have run away.

        Raises:
            FloatingPointError: If one is not finite.
        """
        if self.active:
            self._refuse_non_finite(runner)
            self._runaway.look()

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Write what a resume needs.

        Raises:
            FloatingPointError: If a parameter is not finite.
        """
        if self.active:
            self._refuse_non_finite(runner)
            checkpoint['meta']['fpq'] = dict(
                version=__version__, teacher=self._run_teacher.record)

    def _refuse_non_finite(self, runner: Runner) -> None:
        model = _inner(runner.model)
        bad = [
            name for name, parameter in model.named_parameters()
            if not torch.isfinite(parameter).all()
        ]
        if bad:
            raise FloatingPointError(
                f'not saved: the parameter {first_few(bad)} is not finite. '
                'The checkpoints written so far are good: resume from the '
                'last one with a lower learning rate.')

    # -- after_train ------------------------------------------------------

    def after_train(self, runner: Runner) -> None:
        """Detach everything and log a summary."""
        if not self.active:
            return
        runner.logger.info(self._summary())
        self._guard.detach()
        if self._distiller is not None:
            self._loss_handle.remove()
            self._distiller.detach()
        self._distiller = self._guard = self._loss_handle = None
        self._clock = self._run_teacher.model = self._runaway = None
        self._export.run(runner)

    def _summary(self) -> str:
        rows = self._table
        full = LayerTable(
            type(row)(row.name, row.type, 32, 32, row.shape, row.why)
            for row in rows)
        text = (f'FPQ quantized {len(rows.quantized())} of {len(rows)} layers;'
                f' weights {rows.weight_bytes() / 1e6:.3f} MB, '
                f'{full.weight_bytes() / 1e6:.3f} MB in float32')
        if self._distiller is not None and self._distiller.layer_losses():
            losses = self._distiller.layer_losses()
            far = max(losses, key=lambda name: float(losses[name]))
            text += (f'; the layer farthest from the teacher is {far} '
                     f'(loss {float(losses[far]):.4f} in the last '
                     'iteration)')
        return text

    @staticmethod
    def _training(runner: Runner) -> bool:
        """Whether ``runner.train()`` has built the optimizer."""
        return isinstance(runner.optim_wrapper, OptimWrapper)


def _inner(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _wrappers(optim_wrapper: OptimWrapper) -> list[OptimWrapper]:
    if isinstance(optim_wrapper, OptimWrapperDict):
        return list(optim_wrapper.values())
    return [optim_wrapper]
