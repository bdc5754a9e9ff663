"""The teacher of a run: where its weights are, copied, kept, found again."""

from __future__ import annotations

import hashlib
import io
import os.path as osp
from collections.abc import Mapping
from typing import Any

import torch
from mmengine import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from torch import Tensor, nn

from .._compat.files import load_file, write_whole
from ..convert import to_float
from ..distillation.compared import logits_layer
from ..layers import copy_module
from ..state import (
    bare_state,
    complete_state,
    float_state,
    load_exactly,
    quantizer_state,
    refuse_other_architecture,
)
from .checkpoints import load_model, starts_from_teacher
from .config_checks import recipe_of


def copy_float(model: nn.Module) -> nn.Module:
    """A full-precision copy of ``model``, converted or not, for a teacher."""
    teacher = to_float(copy_module(model))
    teacher.requires_grad_(False)
    return teacher


def fill_from_student(teacher: nn.Module, student: nn.Module) -> None:
    """Copy the student's latent weights and statistics to the teacher."""
    own = quantizer_state(student)
    load_exactly(teacher, {key: value
                           for key, value in complete_state(student).items()
                           if key not in own})


def fill_from_file(teacher: nn.Module, path: str, key: str) -> None:
    """Load the teacher's weights from a full-precision checkpoint.

    Args:
        teacher (nn.Module): Model to fill.
        path (str): Checkpoint file or URL.
        key (str): The option's name, for messages.

    Raises:
        ValueError: If the file is missing, no checkpoint, quantized, or of
            another architecture; the message names the keys.
    """
    try:
        state = bare_state(load_file(path))
    except (OSError, ValueError) as error:
        raise ValueError(f'{key}: {error}') from error
    refuse_other_architecture(
        float_state(teacher), state, f'{key}: {path!r}')
    teacher.load_state_dict(state, strict=False)


def load_other(config: str, checkpoint: str,
               student: nn.Module) -> tuple[nn.Module, str]:
    """A teacher of another architecture, and its layer of the logits.

    Args:
        config (str): The config that it was trained with.
        checkpoint (str): Its checkpoint, a path or a URL.
        student (nn.Module): The model that it is to teach, in full precision.

    Returns:
        tuple[nn.Module, str]: The teacher, where the student is; the name.

    Raises:
        ValueError: If it is quantized, has other classes, or normalizes
            images in another way; the message names the key.
    """
    key = 'fpq.teacher'
    try:
        cfg = Config.fromfile(config)
        recipe = recipe_of(cfg)
        if recipe is not None and not recipe.is_float():
            raise ValueError('the model of the config is quantized; a '
                             'teacher is of full precision')
        teacher = load_model(cfg, checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f'{key}: {error}') from error
    own, other = (_normalization(model) for model in (student, teacher))
    if own != other:
        raise ValueError(
            f'{key}: it would see the images as the student does, and its '
            f'data_preprocessor has {other} where the student has {own}')
    layer, classes = _logits(teacher)
    wanted = _logits(student)[1]
    if classes != wanted:
        raise ValueError(f'{key}: {layer} has {classes} outputs, and the '
                         f"student's last layer has {wanted}")
    device = next(student.parameters()).device
    return teacher.to(device).requires_grad_(False), layer


def _normalization(model: nn.Module) -> dict[str, Any]:
    own = getattr(model, 'data_preprocessor', None)
    found = {}
    for name in ('mean', 'std', 'to_rgb', '_channel_conversion'):
        value = getattr(own, name, None)
        found[name.strip('_')] = (value.flatten().tolist() if isinstance(
            value, Tensor) else value)
    return {name: value for name, value in found.items() if value is not None}


def _logits(model: nn.Module) -> tuple[str, int]:
    """The layer of a classifier's logits, and how many there are."""
    layers = {name: module for name, module in model.named_modules()
              if isinstance(module, (nn.Linear, nn.Conv2d))}
    name = logits_layer(list(layers))
    return name, len(layers[name].weight)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dict, 16 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(
            torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_teacher(teacher: nn.Module, path: str) -> None:
    """Write the teacher's weights, whole or not at all."""
    with io.BytesIO() as content:
        # Straight into a file torch hides why it cannot be written.
        torch.save(dict(state_dict=complete_state(teacher)), content)
        write_whole(path, lambda file: file.write(content.getbuffer()))


def full_precision_of(record: Mapping[str, Any]) -> str:
    """What messages call the weights that a quantized model came from.

    Args:
        record (Mapping): What a checkpoint's ``meta`` has under ``fpq``.
    """
    teacher = record.get('teacher') or {}
    path = teacher.get('path')
    if 'config' not in teacher and path is not None and osp.isfile(path):
        return f'{path!r}, its teacher'
    return 'the full-precision checkpoint'


class TeacherOfRun:
    """Knows which weights the teacher has, across stops and resumes.

    Args:
        teacher (str | Mapping, optional): The hook's ``teacher``.

    Attributes:
        path (str, optional): The checkpoint that it names.
        config (str, optional): Its config, if it is of another architecture.
        layer (str, optional): Then, its layer of the logits, after
            :meth:`copy`.
        fills_student (bool): Whether ``path`` alone gives the student its
            weights.
        model (nn.Module): The teacher, after :meth:`copy`.
        record (dict): What a checkpoint says of it: ``mark``, the weights'
            fingerprint, and ``path``, where they are.
    """

    def __init__(self, teacher: str | Mapping[str, str] | None) -> None:
        self.config: str | None = None
        if isinstance(teacher, Mapping):
            self.config, teacher = teacher['config'], teacher['checkpoint']
        self.path = teacher
        self.layer: str | None = None
        self.fills_student = False
        self.model: Any = None
        self.record: Any = None
        self._loaded: Any = None

    def require_start(self, runner: Runner, model: nn.Module) -> None:
        """Refuse a run that would start from random weights.

        Args:
            runner (Runner): The runner, before it loads anything.
            model (nn.Module): Its model.

        Raises:
            ValueError: If there are no full-precision weights, or the file
                named is missing or no checkpoint; the message names the key.
        """
        if not runner._has_loaded:
            self.fills_student = starts_from_teacher(
                runner, model, self.path if self.config is None else None)

    def fill_student(self, runner: Runner, model: nn.Module) -> None:
        """Give the student the weights that nothing else gave it."""
        if self.fills_student and self.path is not None:
            runner.logger.info('FPQ: the student starts from fpq.teacher')
            fill_from_file(model, self.path, 'fpq.teacher')

    def copy(self, model: nn.Module) -> None:
        """Take ``model``'s structure; read a named checkpoint right away.

        Raises:
            ValueError: If that checkpoint cannot be the teacher.
        """
        if self.config is not None and self.path is not None:
            self.model, self.layer = load_other(self.config, self.path, model)
            return
        self.model = copy_float(model)
        if self.path is not None:
            fill_from_file(self.model, self.path, 'fpq.teacher')

    def student_loaded(self, record: dict | None) -> None:
        """The student's weights are a trained student's, so not a teacher's.

        Args:
            record (dict, optional): The :attr:`record` in its checkpoint.
        """
        self._loaded = record or {}

    def settle(self, runner: Runner, student: nn.Module) -> None:
        """Fill the teacher, once the Runner has loaded or resumed.

        Raises:
            ValueError: If a trained student's teacher cannot be found.
        """
        if self.path is not None:
            self._settle_named(runner, self.path)
        elif self._loaded is None:
            self._settle_fresh(runner, student)
        else:
            self._settle_recorded(runner)
        runner.logger.info(f'FPQ: the teacher is {self.record["path"]}'
                           f'{self._origin()}')

    def _origin(self) -> str:
        if self.path is not None or self._loaded is not None:
            return ''
        return ', a copy of the weights that the run starts from'

    def _settle_named(self, runner: Runner, path: str) -> None:
        self.record = dict(mark=fingerprint(complete_state(self.model)),
                           path=_absolute(path))
        if self.config is not None:
            self.record['config'] = osp.abspath(self.config)
        past = (self._loaded or {}).get('mark', self.record['mark'])
        if past != self.record['mark']:
            runner.logger.warning(
                'FPQ: fpq.teacher has other weights than the teacher that '
                'the loaded checkpoint was trained with')

    def _settle_fresh(self, runner: Runner, student: nn.Module) -> None:
        fill_from_student(self.model, student)
        mark = fingerprint(complete_state(self.model))
        path = osp.join(runner.work_dir, f'fpq_teacher_{mark}.pth')
        self.record = dict(mark=mark, path=_absolute(path))
        if is_main_process():
            save_teacher(self.model, self.record['path'])

    def _settle_recorded(self, runner: Runner) -> None:
        path = self._find(runner)
        key = 'fpq.teacher (of the checkpoint)'
        try:
            fill_from_file(self.model, path, key)
        except ValueError as error:
            raise ValueError(
                f'{error}. Set fpq.teacher to the full-precision checkpoint '
                'that the run started from.') from error
        if fingerprint(complete_state(self.model)) != self._loaded['mark']:
            raise ValueError(
                f'fpq.teacher: {path!r} is not the teacher that the '
                'checkpoint was trained with (other weights). Set '
                'fpq.teacher to the right checkpoint.')
        self.record = dict(mark=self._loaded['mark'], path=_absolute(path))

    def _find(self, runner: Runner) -> str:
        """The teacher's file: where it was, or beside the checkpoint."""
        if not self._loaded:
            raise ValueError('fpq.teacher: the checkpoint to start from was '
                             'trained without a teacher. Set fpq.teacher to '
                             'the full-precision checkpoint.')
        past = self._loaded['path']
        folders = [runner.work_dir]
        if runner._load_from is not None:
            folders.append(osp.dirname(runner._load_from))
        paths = [past]
        paths += [osp.join(f, osp.basename(past)) for f in folders]
        for path in paths:
            if '://' in path or osp.isfile(path):
                return path
        raise ValueError(f'fpq.teacher: no file {past!r}, the teacher that '
                         'the checkpoint was trained with. Set fpq.teacher to '
                         'the full-precision checkpoint.')


def _absolute(path: str) -> str:
    return path if '://' in path else osp.abspath(path)
