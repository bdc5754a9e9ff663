"""FPQ in the life of an MMEngine Runner."""

from __future__ import annotations

import copy
import os.path as osp
import time
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import broadcast, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from ..calibrate import calibrate, uninitialized
from ..calibration_data import calibration_batches, same_randomness
from ..convert import (
    DEFAULT_ACTIVATION,
    DEFAULT_PERTURBATION,
    DEFAULT_WEIGHT,
    check_settings,
    convert,
    is_float,
    noise_clock,
)
from ..distill import Distiller
from ..layer_table import LayerTable
from ..layers import quantized_layers
from ..nonfinite import NonFiniteGuard
from ..options import build, known_options, refuse_unknown, resolve
from ..param_groups import separate_scales
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
from ..teacher import (
    copy_float,
    fill_from_file,
    fill_from_student,
    fingerprint,
    save_teacher,
)
from ..version import __version__

DEFAULT_DISTILLATION = dict(type='CSDLoss', loss_weight=1.0)
DEFAULT_CALIBRATION = dict(num_images=100)


@HOOKS.register_module()
class FPQHook(Hook):
    """Trains the Runner's model with feature-perturbed quantization.

    Put it under ``default_hooks`` of any config whose weights come from a
    full-precision checkpoint. The Runner's model is converted in place
    before training, validation and test alike; in training the teacher, the
    calibration, SFP and CSD join (Algorithm 1, equation (22)). The added
    loss is ``loss_csd``.

    Args:
        backend (str): Whose quantizers and layers: 'torch_ao' or 'brevitas'
            (needs the extra of that name). Defaults to 'torch_ao'.
        weight (dict, optional): The weights' fake quantizer; None or
            ``bits=32``: float. Defaults to LSQ, 4 bits.
        activation (dict, optional): The activations' fake quantizer; None or
            ``bits=32``: float. Defaults to LSQ, 4 bits. With both off and no
            overrides the hook does nothing.
        perturbation (dict, optional): SFP; None: off. Defaults to p = 0.1.
        distillation (dict, optional): CSD; None: off. Defaults to lambda 1.
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
        scale_lr_mult (float): Learning rate of the quantizers' parameters
            over that of the group they would be in. Defaults to 1.0.

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
                 distillation: dict | None = DEFAULT_DISTILLATION,
                 teacher: str | None = None,
                 calibration: dict = DEFAULT_CALIBRATION,
                 first_last_bits: int | None = 8,
                 skip: Sequence[str] = (),
                 overrides: dict | None = None,
                 scale_lr_mult: float = 1.0,
                 **unknown: Any) -> None:
        refuse_unknown('fpq', unknown, known_options(FPQHook))
        if teacher is not None and not isinstance(teacher, str):
            raise TypeError('fpq.teacher: must be the path or URL of a '
                            f'checkpoint, got {teacher!r}')
        if not scale_lr_mult >= 0:
            raise ValueError('fpq.scale_lr_mult: must be >= 0, got '
                             f'{scale_lr_mult!r}')
        self.settings = dict(
            weight=weight,
            activation=activation,
            perturbation=perturbation,
            first_last_bits=first_last_bits,
            skip=skip,
            overrides=overrides,
            backend=backend)
        check_settings(**self.settings)
        self.active = not is_float(weight, activation, overrides)
        distillation = resolve('distillation', distillation, 'CSDLoss')
        self.criterion = (None if distillation is None else build(
            'distillation', distillation))
        self.num_images = _num_images(calibration)
        self.teacher = teacher
        self.scale_lr_mult = scale_lr_mult

        self._teacher_model: nn.Module | None = None
        self._teacher_record: dict | None = None
        self._optim_wrapper: OptimWrapper | None = None
        self._distiller: Distiller | None = None
        self._guard: NonFiniteGuard | None = None
        self._loss_handle: Any = None
        self._table = LayerTable()

    def convert(self, model: nn.Module) -> LayerTable:
        """Quantize ``model`` in place as this hook's options say."""
        return convert(model, **self.settings)

    # -- before_run: training, validation and test ------------------------

    def before_run(self, runner: Runner) -> None:
        """Convert the model; for training, rebuild what was built on it."""
        if not self.active:
            runner.logger.info('FPQ is off: weight and activation are float')
            return
        model = _inner(runner.model)
        training = self._training(runner)
        if training:
            self._require_float_weights(runner, model)
            if self.criterion is not None and self._teacher_model is None:
                self._teacher_model = copy_float(model)
                if self.teacher is not None:
                    fill_from_file(self._teacher_model, self.teacher,
                                   'fpq.teacher')
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
        if training and runner.optim_wrapper is not self._optim_wrapper:
            self._rebuild_optimizer(runner, model)

    def _require_float_weights(self, runner: Runner,
                               model: nn.Module) -> None:
        """Refuse a run that would start from random weights."""
        source = runner._load_from
        if runner._resume:
            if source is None and find_latest_checkpoint(
                    runner.work_dir) is None:
                raise ValueError('resume: there is no checkpoint in '
                                 f'{runner.work_dir!r}. Start the run without '
                                 '--resume, with load_from.')
            return
        if source is not None:
            if '://' not in source and not osp.isfile(source):
                raise ValueError(f'load_from: no file {source!r}')
            return
        pretrained = [
            name for name, module in model.named_modules()
            if _is_pretrained(getattr(module, 'init_cfg', None))
        ]
        if pretrained and '' not in pretrained and self.teacher is None:
            left = [
                name for name, child in model.named_children()
                if not any(p.split('.')[0] == name for p in pretrained)
                and any(True for _ in child.parameters())
            ]
            if left:
                runner.logger.warning(
                    'FPQ: init_cfg gives full-precision weights to '
                    f'{first_few(pretrained)} only; the teacher starts with '
                    f'random weights in {first_few(left)}')
        if not pretrained and self.teacher is None:
            raise ValueError(
                'FPQ starts from a full-precision model, and none is given: '
                'set load_from to its checkpoint (or fpq.teacher, or an '
                'init_cfg of type Pretrained in the model)')

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
        wrappers = (
            runner.optim_wrapper.values() if isinstance(
                runner.optim_wrapper, OptimWrapperDict) else
            [runner.optim_wrapper])
        separate_scales(model, [w.optimizer for w in wrappers],
                        self.scale_lr_mult)
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
        key = 'resume' if training and runner._resume else 'load_from'
        what = f'{key}: the checkpoint {runner._load_from or "found"}'
        mend = {
            (True, True): 'Resume with the config that made it, or start '
            'anew from it with load_from and without --resume.',
            (True, False): 'Use the bits it was trained with, or start from '
            'the full-precision checkpoint.',
            (False, False): 'Test it with the config it was trained with, a '
            'full-precision one without FPQ.',
        }[training, training and runner._resume]
        if training and not runner._resume and not quantizer_bits(state):
            if self.teacher is None:
                refuse_other_architecture(float_state(model), state, what)
            # So that mmengine does not warn of hundreds of missing keys.
            checkpoint.get('state_dict', checkpoint).update(
                quantizer_state(model))
            return
        refuse_other_quantization(model, state, what, mend)
        meta = checkpoint.get('meta', {}).get('fpq', {})
        self._teacher_record = meta.get('teacher', {})

    # -- before_train -----------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        """Fill the teacher, calibrate, attach SFP's clock and CSD."""
        if not self.active:
            return
        model = _inner(runner.model)
        if self.criterion is not None:
            self._settle_teacher(runner, model)
        elif self.teacher is not None and runner._load_from is None:
            fill_from_file(model, self.teacher, 'fpq.teacher')
        if uninitialized(model):
            self._calibrate(runner, model)
        clock = noise_clock(model)
        if clock is not None:
            clock.seed, clock.rank = runner.seed or 0, get_rank()
        if self.criterion is not None:
            self._distiller = Distiller(
                model,
                self._teacher_model,
                self.criterion,
                run_teacher=_run_tensor_mode,
                condition=_is_loss_mode,
                warn=runner.logger.warning)
            self._loss_handle = model.register_forward_hook(
                self._add_loss, with_kwargs=True)
        self._guard = NonFiniteGuard(model)

    def _settle_teacher(self, runner: Runner, model: nn.Module) -> None:
        """Make sure the teacher has the full-precision weights."""
        teacher, record = self._teacher_model, self._teacher_record
        if self.teacher is not None:
            if runner._load_from is None and not runner._resume:
                runner.logger.info('FPQ: the student starts from fpq.teacher')
                model.load_state_dict(teacher.state_dict(), strict=False)
        elif record is None:
            fill_from_student(teacher, model)
            mark = fingerprint(teacher)
            self._teacher_record = dict(mark=mark, path=osp.abspath(
                osp.join(runner.work_dir, f'fpq_teacher_{mark}.pth')))
            if is_main_process():
                save_teacher(teacher, self._teacher_record['path'])
            return
        else:
            path = _find_teacher(record, runner)
            fill_from_file(teacher, path, 'fpq.teacher (of the checkpoint)')
            runner.logger.info(f'FPQ: the teacher is {path}')
            if fingerprint(teacher) != record['mark']:
                raise ValueError(
                    f'fpq.teacher: {path!r} is not the teacher that the '
                    'checkpoint was trained with (other weights). Set '
                    'fpq.teacher to the right checkpoint.')
        self._teacher_record = dict(
            mark=fingerprint(teacher),
            path=osp.abspath(self.teacher or record['path']))

    def _calibrate(self, runner: Runner, model: nn.Module) -> None:
        start = time.time()
        runner.logger.info(f'FPQ calibrates on {self.num_images} training '
                           'images')
        if is_main_process():
            with same_randomness():
                calibrate(
                    model,
                    calibration_batches(
                        runner.train_dataloader,
                        self.num_images,
                        runner.seed or 0,
                        progress=True),
                    forward=_forward_batch,
                    warn=runner.logger.warning)
        for module in model.modules():
            if isinstance(module, Quantizer):
                for tensor in module.state_dict().values():
                    broadcast(tensor)
        runner.logger.info(f'FPQ calibrated in {time.time() - start:.1f} s')

    # -- iterations -------------------------------------------------------

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Tell SFP which iteration this is."""
        clock = noise_clock(_inner(runner.model)) if self.active else None
        if clock is not None:
            clock.seek(runner.iter)

    def _add_loss(self, model: nn.Module, args: tuple, kwargs: dict,
                  losses: Any) -> None:
        if model.training and _is_loss_mode(kwargs):
            losses['loss_csd'] = self._distiller.loss()

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Write what a resume needs; refuse to save parameters that are not
        finite."""
        if not self.active:
            return
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
        checkpoint['meta']['fpq'] = dict(
            version=__version__, teacher=self._teacher_record)

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
        self._teacher_model = None

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
                     f'(loss_csd {float(losses[far]):.4f} in the last '
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


def _num_images(calibration: dict) -> int:
    if not isinstance(calibration, dict):
        raise TypeError('fpq.calibration: must be a dict, got '
                        f'{calibration!r}')
    refuse_unknown('fpq.calibration', calibration, ['num_images'])
    number = calibration.get('num_images', DEFAULT_CALIBRATION['num_images'])
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError('fpq.calibration.num_images: must be a positive '
                         f'integer, got {number!r}')
    return number


def _is_pretrained(init_cfg: Any) -> bool:
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(
        isinstance(cfg, dict) and cfg.get('type') == 'Pretrained'
        for cfg in cfgs)


def _find_teacher(record: dict, runner: Runner) -> str:
    """The teacher's file: where it was, or beside the checkpoint."""
    if not record:
        raise ValueError('fpq.teacher: the checkpoint to start from was '
                         'trained without a teacher. Set fpq.teacher to the '
                         'full-precision checkpoint.')
    folders = [runner.work_dir]
    if runner._load_from is not None:
        folders.append(osp.dirname(runner._load_from))
    paths = [record['path']]
    paths += [osp.join(f, osp.basename(record['path'])) for f in folders]
    for path in paths:
        if '://' in path or osp.isfile(path):
            return path
    raise ValueError(f'fpq.teacher: no file {record["path"]!r}, the teacher '
                     'that the checkpoint was trained with. Set fpq.teacher '
                     'to the full-precision checkpoint.')


def _forward_batch(model: nn.Module, batch: Any) -> Any:
    data = model.data_preprocessor(batch, False)
    return model._run_forward(data, mode='tensor')


def _run_tensor_mode(teacher: nn.Module, args: tuple, kwargs: dict) -> Any:
    # The same layers as in 'loss' mode, without the loss.
    return teacher(*args, **{**kwargs, 'mode': 'tensor'})


def _is_loss_mode(kwargs: dict) -> bool:
    return kwargs.get('mode') == 'loss'
