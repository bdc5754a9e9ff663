"""FPQ in the life of an MMEngine Runner."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any
from weakref import ref

from mmengine.dist import get_rank, is_main_process
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from .._compat.files import remove_parts
from ..add_joints import float_operations
from ..calibrate import leave_uncalled, uninitialized
from ..joints import Joint, joints_of
from ..layer_table import LayerTable
from ..layers import quantized_layers
from ..options import refuse_unmatched
from ..quantizers import describe, named_quantizers
from ..recipe import Recipe
from ..state import (
    bare_state,
    float_state,
    quantizer_bits,
    quantizer_state,
    refuse_other_architecture,
    refuse_other_quantization,
)
from ..version import __version__
from .baselines import Baselines, tell_of_high_rate
from .batch_norms import BatchNormsOfRun, saves_now
from .calibration import calibrate_run
from .checkpoints import (
    complete,
    described_joints,
    other_recipe,
    quantizers_of,
    refuse_averaged_part,
    refuse_averaged_twice,
    refuse_missing_target,
)
from .export_run import ExportAtEnd
from .guards import refuse_non_finite
from .joints_of_run import join_run
from .model_families import convert_mm_model, unwrap
from .optimizer import (
    count_micro_batches,
    freeze_idle,
    rebuild_optimizer,
    require_optim_config,
    undo_checkpointing,
    wrap_again,
    wrappers_of,
)
from .runs import (
    RunAware,
    TrainingSession,
    is_training,
    refuse_other_runner,
    refuse_unfit_training,
    undistilled,
)
from .teacher import TeacherOfRun, full_precision_of


@HOOKS.register_module()
class FPQHook(RunAware):
    """Trains the Runner's model with feature-perturbed quantization.

    Put it under ``default_hooks`` of any config whose weights come from a
    full-precision checkpoint. The Runner's model is converted in place
    before training, validation and test alike; in training the teacher, the
    calibration, SFP and distillation join (the paper's Algorithm 1 and
    equation (22)). The added loss is ``loss_csd``; that of LogitKD is
    ``loss_kd``.

    Args:
        **options: Those of :class:`~fpq_plugin.Recipe`.

    Attributes:
        recipe (Recipe): The options, checked.
        session (TrainingSession, optional): What the running training has
            attached; None outside of one.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If an option is unknown or has a wrong value.
        ImportError: If what the backend needs is not installed.
    """

    # Before EMAHook (NORMAL), which copies the model in its before_run.
    priority = 'VERY_HIGH'

    def __init__(self, **options: Any) -> None:
        self.recipe = Recipe.of(options)
        self.session: TrainingSession | None = None
        self._teacher = TeacherOfRun(self.recipe.teacher)
        self._export = ExportAtEnd(self.recipe)
        self._table = LayerTable()
        self._baselines = Baselines()
        self._batch_norms = BatchNormsOfRun(self.recipe.batch_norm_images())
        self._optim_wrapper: OptimWrapper | None = None
        self._runner: Any = None
        self._filled = False
        self._joints: Sequence[Joint] = ()

    def convert(self, model: nn.Module) -> LayerTable:
        """Quantize ``model`` in place as the options say.

        Raises:
            ValueError: If the model averages its own weights.
        """
        return convert_mm_model(model, self.recipe)

    # -- before_run -------------------------------------------------------

    def check_run(self, runner: Any, verb: str) -> None:
        """Refuse a run that FPQ cannot be in, before anything is changed.

        Raises:
            TypeError: If the Runner is of another kind.
            ValueError: If an option or a part of it does not go with FPQ.
        """
        if self.recipe.is_float():
            return
        refuse_other_runner(runner)
        if verb == 'train':
            refuse_unfit_training(runner)

    def before_run(self, runner: Runner) -> None:
        """Convert the model; for training, rebuild what was built on it."""
        if self.recipe.is_float():
            runner.logger.info('FPQ is off: weight and activation are float')
            return
        training, model = is_training(runner), unwrap(runner.model)
        self.check_run(runner, 'train' if training else 'test')
        self._meet(runner)
        if training:
            refuse_averaged_part(runner, model)
            require_optim_config(runner)
            if is_main_process():
                remove_parts(runner.work_dir)
            if not self._filled:
                self._teacher.require_start(runner, model)
            undo_checkpointing(runner, model)
            if self.recipe.distillation and self._teacher.model is None:
                self._teacher.copy(model)
        if not quantized_layers(model):
            self._convert(runner, model)
        refuse_unmatched('fpq.distill_skip', self.recipe.distill_skip,
                         list(quantized_layers(model)))
        if training and runner.optim_wrapper is not self._optim_wrapper:
            rebuild_optimizer(runner, model, self.recipe.scale_lr_mult)
            self._optim_wrapper = runner.optim_wrapper

    def _meet(self, runner: Runner) -> None:
        """Begin anew with another Runner than the last one."""
        if self._runner is not None and self._runner() is not runner:
            self._teacher = TeacherOfRun(self.recipe.teacher)
            self._baselines = Baselines()
            self._filled = False
        self._runner = ref(runner)

    def _convert(self, runner: Runner, model: nn.Module) -> None:
        runner.logger.info(f'FPQ {__version__}, {self.recipe.describe()}')
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            self._table = self.convert(model)
        for each in told:
            runner.logger.warning(f'FPQ: {each.message}')
        runner.logger.info(
            f'FPQ {__version__} quantizes {len(self._table.quantized())} '
            f'of {len(self._table)} layers:\n{self._table}')
        if self.recipe.target is not None:
            self._add_joints(runner, model)
        wrap_again(runner)

    def _add_joints(self, runner: Runner, model: nn.Module) -> None:
        """Quantize what the target's engine runs on integers beside layers."""
        found, placing = join_run(runner, model, self.recipe,
                                  is_training(runner))
        rows = LayerTable(found)
        self._joints = placing.joints
        refuse_averaged_twice(runner, model)
        runner.logger.info(
            f'FPQ {__version__} quantizes {len(rows)} tensors beside the '
            f'layers for {self.recipe.target}:\n{rows}')
        if placing.left:
            runner.logger.info(
                float_operations(placing, str(self.recipe.target)))

    # -- load_or_resume ---------------------------------------------------

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse a checkpoint that this run cannot use, before loading."""
        if self.recipe.is_float():
            return
        model = unwrap(runner.model)
        state = bare_state(checkpoint)
        training = is_training(runner)
        what = f'the checkpoint {runner._load_from or "in the work directory"}'
        if training:
            what = f'{"resume" if runner._resume else "load_from"}: {what}'
        meta = (checkpoint.get('meta') or {}).get('fpq') or {}
        fresh = ('start anew, without --resume and in another work '
                 f'directory, with load_from={full_precision_of(meta)}')
        way_out = {
            (True, True): 'Resume with the config that made it. For other '
            f'quantizers {fresh}',
            (True, False): 'Use the quantizers that it was trained with. For '
            f'others {fresh}',
            (False, False): 'Test a checkpoint with the config that it was '
            'trained with; a full-precision one with a config without FPQ.',
        }[training, training and runner._resume]
        if training and not runner._resume and not quantizer_bits(state):
            refuse_other_architecture(float_state(model), state, what)
            # So that mmengine does not warn of hundreds of missing keys.
            checkpoint.get('state_dict', checkpoint).update(
                quantizer_state(model))
            return
        refuse_missing_target(checkpoint, self.recipe, what)
        refuse_other_quantization(model, state, what, way_out,
                                  quantizers_of(checkpoint, model))
        other = other_recipe(checkpoint, self.recipe)
        if training and runner._resume and other:
            runner.logger.warning(f'FPQ: {what}: {other}')
        if training and not runner._resume:
            runner.logger.warning(
                f'FPQ: {what} is a quantized model: training goes on from its '
                'weights and scales and, unless fpq.teacher names another, '
                'with its teacher. To start anew, set load_from to the '
                'full-precision checkpoint')
        self._teacher.student_loaded(meta.get('teacher'))
        self._baselines.scores = meta.get('baselines') or {}

    # -- before_train -----------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        """Fill the teacher, calibrate, begin the session."""
        if self.recipe.is_float():
            return
        self.close()
        model = unwrap(runner.model)
        self._teacher.fill_student(runner, model)
        # Not when this Runner trains again.
        self._teacher.fills_student, self._filled = False, True
        if self.recipe.distillation:
            self._teacher.settle(runner, model)
        starting = bool(uninitialized(model))
        if starting:
            calibrate_run(runner, model, self.recipe.calibration_images())
        self._export.check(runner, model)
        self._tell_uncalled(runner, model)
        if freeze_idle(model):
            wrap_again(runner)
        count_micro_batches(runner.optim_wrapper, model)
        if starting:
            tell_of_high_rate(runner)
            if self.recipe.baselines:
                self._baselines.measure(runner, model)
        self.session = TrainingSession(
            model,
            self.recipe,
            self._teacher.model,
            self._teacher.layer,
            seed=runner.seed or 0,
            rank=get_rank(),
            distill_skip=undistilled(self.recipe, model, runner.logger.info),
            optimizers=[each.optimizer
                        for each in wrappers_of(runner.optim_wrapper)],
            warn=runner.logger.warning)

    def _tell_uncalled(self, runner: Runner, model: nn.Module) -> None:
        """Leave float, and name, the layers that no forward calls."""
        names = leave_uncalled(model)
        self._table = self._table.left_float(names, 'no forward calls it')
        if names:
            runner.logger.warning(
                'FPQ leaves float the layers that no forward calls: '
                f'{", ".join(names)}. (If a forward uses their weights '
                'instead, register_weight_reader mends it.)')

    def after_val_epoch(self, runner: Runner,
                        metrics: dict | None = None) -> None:
        """Hold the validation against full precision and calibration."""
        if self.session is not None:
            self._baselines.validated(runner, metrics or {})

    # -- iterations -------------------------------------------------------

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Tell the session which iteration this is."""
        if self.session is not None:
            self._batch_norms.behind = True
            self.session.start_iteration(
                runner.iter, getattr(runner.train_loop, 'max_iters', None))

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
        if self.session is None:
            return
        if self.session.distilled_nothing():
            raise RuntimeError(
                'FPQ distilled nothing in this iteration: the train_step of '
                f'{type(unwrap(runner.model)).__name__} does not call its '
                "forward with mode='loss'. Set distillation=None.")
        if saves_now(runner, by_epoch=False):
            self.after_train_epoch(runner, by_epoch=False)

    def after_train_epoch(self, runner: Runner, by_epoch: bool = True) -> None:
        """Look at the parameters before CheckpointHook removes old files.

        Tells of steps that have run away. If a checkpoint follows, batch
        norms are set anew for it.

        Raises:
            FloatingPointError: If one is not finite.
        """
        if self.session is None:
            return
        model = unwrap(runner.model)
        refuse_non_finite(model)
        self.session.look_at_steps()
        if saves_now(runner, by_epoch):
            self._batch_norms.catch_up(runner, model)

    def before_val_epoch(self, runner: Runner) -> None:
        """Set batch norms anew for a validation, if there was training."""
        if self.session is not None:
            self._batch_norms.catch_up(runner, unwrap(runner.model))

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Write what a resume needs.

        Raises:
            FloatingPointError: If a parameter is not finite.
        """
        if self.recipe.is_float():
            return
        model = unwrap(runner.model)
        refuse_non_finite(model)
        complete(checkpoint['state_dict'], model)
        checkpoint['meta']['fpq'] = dict(
            version=__version__,
            recipe=self.recipe.describe(),
            teacher=self._teacher.record,
            baselines=self._baselines.scores,
            **({'joints': described_joints(self._joints or joints_of(model))}
               if self.recipe.target else {}),
            quantizers={
                name: describe(quantizer) for name, quantizer in
                named_quantizers(model, False).items()
            })

    # -- after_train ------------------------------------------------------

    def after_train(self, runner: Runner) -> None:
        """Log a summary, end the session, export."""
        if self.session is None:
            return
        self._batch_norms.catch_up(runner, unwrap(runner.model))
        runner.logger.info(self.session.summary(self._table))
        self._baselines.tell_end(runner)
        self.close()
        self._export.run(runner)

    def close(self) -> None:
        """End the session, however the training ended.

        The Runner's ``train`` calls it at an error or an interrupt too, so
        that training again in the same process starts clean: from the
        student as it is then, with the teacher that it had.
        """
        if self.session is None:
            return
        self.session.close()
        self.session = self._teacher.model = None
        if self._teacher.record is not None:
            self._teacher.student_loaded(self._teacher.record)
