"""What a run starts from: full-precision weights, or what it resumes."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmengine import Config
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from .._compat.files import load_file, other_checkpoint
from ..options import type_name
from ..state import bare_state, first_few, quantizer_bits


def starts_from_teacher(runner: Runner, model: nn.Module,
                        teacher: str | None) -> bool:
    """Settle what a run starts from; refuse random weights.

    A cluster starts each run with ``resume``, the first one too. Where there
    is nothing to resume yet, the run starts as it would without.

    Args:
        runner (Runner): The runner, before it loads anything.
        model (nn.Module): Its model.
        teacher (str, optional): The hook's ``teacher``.

    Returns:
        bool: Whether only ``teacher`` gives the student its weights.

    Raises:
        ValueError: If there are no full-precision weights, or the file named
            is missing or no checkpoint; the message names the key.
    """
    resuming = runner._resume
    if resuming and _resumes(runner):
        return False
    if runner._load_from is not None:
        if '://' not in runner._load_from:
            _require_checkpoint(runner._load_from, 'load_from')
        return False
    pretrained = [
        name for name, module in model.named_modules()
        if _is_pretrained(getattr(module, 'init_cfg', None))
    ]
    if not pretrained and teacher is None:
        if resuming:
            raise ValueError('resume: there is no checkpoint in '
                             f'{runner.work_dir!r}, and nothing to start '
                             'from either. Start the run without --resume, '
                             'with load_from, or set fpq.teacher.')
        raise ValueError(
            'FPQ starts from a full-precision model, and none is given: set '
            'load_from to its checkpoint (or fpq.teacher, or an init_cfg of '
            'type Pretrained in the model)')
    left = [
        name for name, child in model.named_children()
        if not any(p.split('.')[0] == name for p in pretrained)
        and any(True for _ in child.parameters())
    ]
    if pretrained and '' not in pretrained and left and teacher is None:
        runner.logger.warning(
            'FPQ: init_cfg gives full-precision weights to '
            f'{first_few(pretrained)} only; the teacher starts with random '
            f'weights in {first_few(left)}')
    return not pretrained


def _resumes(runner: Runner) -> bool:
    """Whether there is something to resume; else the run starts anew.

    A full-precision ``load_from`` is what a run starts from, not what it
    resumes.
    """
    source = runner._load_from
    if source is not None and not _is_full_precision(source):
        return True
    last = _last_checkpoint(runner.work_dir)
    if last is not None:
        if source is not None:
            runner.logger.warning(
                f'FPQ resumes {last}: load_from, {source}, is of full '
                'precision, so it is what the run once started from')
        runner._load_from = None
        return True
    if source is None:
        source = _written_load_from(runner.cfg)
    runner.logger.warning(
        f'FPQ: there is nothing in {runner.work_dir} to resume yet; the run '
        'starts from its full-precision weights')
    runner._load_from, runner._resume = source, False
    return False


def _written_load_from(cfg: Config) -> str | None:
    """The ``load_from`` in the config's file.

    The packages' train.py sets it to None where ``--resume`` is given.
    """
    if cfg.filename is None or not osp.isfile(cfg.filename):
        return None
    return Config.fromfile(cfg.filename).get('load_from')


def _last_checkpoint(folder: str) -> str | None:
    """The checkpoint that MMEngine resumes of itself, None if none yet.

    Raises:
        ValueError: If the file that is named is not there.
    """
    path = find_latest_checkpoint(folder)
    if path is None or '://' in path or (path and osp.exists(path)):
        return path
    note = osp.join(folder, 'last_checkpoint')
    raise ValueError(
        f'resume: {note!r} names {path!r}, and there is no such file; if the '
        'folder was moved, name the checkpoint by --resume CKPT'
        f'{other_checkpoint(note)}')


def _is_full_precision(path: str) -> bool:
    """Whether a checkpoint is not FPQ's."""
    return not quantizer_bits(bare_state(_require_checkpoint(path, 'resume')))


def _require_checkpoint(path: str, key: str) -> dict:
    if '://' not in path and not osp.isfile(path):
        raise ValueError(f'{key}: no file {path!r}')
    try:
        return load_file(path)
    except ValueError as error:
        raise ValueError(f'{key}: {error}') from error


def _is_pretrained(init_cfg: Any) -> bool:
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    # By name, with its scope or without, or by class.
    return any(
        isinstance(cfg, dict) and type_name(cfg.get('type')).rpartition('.')[2]
        in ('Pretrained', 'PretrainedInit') for cfg in cfgs)
