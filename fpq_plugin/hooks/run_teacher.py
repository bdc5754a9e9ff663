"""The teacher of a run: copied, filled, recorded, found again."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmengine.dist import is_main_process
from mmengine.runner import Runner
from torch import nn

from ..teacher import (
    copy_float,
    fill_from_file,
    fill_from_student,
    fingerprint,
    save_teacher,
)


class RunTeacher:
    """Knows which weights the teacher has, across stops and resumes.

    Args:
        path (str, optional): The hook's ``teacher``, a checkpoint.

    Attributes:
        model (nn.Module): The teacher, after :meth:`copy`.
        record (dict): What a checkpoint says of it: ``mark``, the weights'
            fingerprint, and ``path``, where they are.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.model: Any = None
        self.record: Any = None
        self._loaded: Any = None

    def copy(self, model: nn.Module) -> None:
        """Take ``model``'s structure; read a named checkpoint right away.

        Raises:
            ValueError: If that checkpoint cannot be the teacher.
        """
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
        self.record = dict(mark=fingerprint(self.model.state_dict()),
                           path=_absolute(path))
        past = (self._loaded or {}).get('mark', self.record['mark'])
        if past != self.record['mark']:
            runner.logger.warning(
                'FPQ: fpq.teacher has other weights than the teacher that '
                'the loaded checkpoint was trained with')

    def _settle_fresh(self, runner: Runner, student: nn.Module) -> None:
        fill_from_student(self.model, student)
        mark = fingerprint(self.model.state_dict())
        path = osp.join(runner.work_dir, f'fpq_teacher_{mark}.pth')
        self.record = dict(mark=mark, path=_absolute(path))
        if is_main_process():
            save_teacher(self.model, self.record['path'])

    def _settle_recorded(self, runner: Runner) -> None:
        path = self._find(runner)
        fill_from_file(self.model, path, 'fpq.teacher (of the checkpoint)')
        if fingerprint(self.model.state_dict()) != self._loaded['mark']:
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
