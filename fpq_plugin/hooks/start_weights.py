"""Where a run's full-precision weights come from, and whether they do."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from ..safe_loading import load_file
from ..state import first_few


def starts_from_teacher(runner: Runner, model: nn.Module,
                        teacher: str | None) -> bool:
    """Refuse a run that would start from random weights.

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
    source = runner._load_from
    if runner._resume:
        if source is None and find_latest_checkpoint(runner.work_dir) is None:
            raise ValueError('resume: there is no checkpoint in '
                             f'{runner.work_dir!r}. Start the run without '
                             '--resume, with load_from.')
        return False
    if source is not None:
        if '://' not in source:
            _require_checkpoint(source)
        return False
    pretrained = [
        name for name, module in model.named_modules()
        if _is_pretrained(getattr(module, 'init_cfg', None))
    ]
    if not pretrained and teacher is None:
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


def _require_checkpoint(path: str) -> None:
    if not osp.isfile(path):
        raise ValueError(f'load_from: no file {path!r}')
    try:
        load_file(path)
    except ValueError as error:
        raise ValueError(f'load_from: {error}') from error


def _is_pretrained(init_cfg: Any) -> bool:
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(
        isinstance(cfg, dict) and cfg.get('type') == 'Pretrained'
        for cfg in cfgs)
