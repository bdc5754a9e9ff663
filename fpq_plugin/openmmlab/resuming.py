"""Starting in a work directory that another run left, perhaps by a kill."""

from __future__ import annotations

import os.path as osp
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.runner import Runner, find_latest_checkpoint

from .._compat.safe_loading import load_file

# What a run writes to go on from; best and published ones lack some.
RESUMABLE = {'meta', 'state_dict', 'message_hub', 'optimizer'}


def settle_resume(runner: Runner) -> None:
    """Let a resuming run take a checkpoint that it can read.

    One that the user names must be readable. ``--resume`` alone takes what
    ``last_checkpoint`` names and, where that is damaged or missing, the
    newest other one of the work directory, with a warning: a repeated epoch
    costs less than a run that stands still until somebody looks.

    Args:
        runner (Runner): The runner, before it loads anything; ``_load_from``
            is set if another checkpoint is taken.

    Raises:
        ValueError: If none can be read; the message says which and why.
    """
    if not runner._resume or runner._has_loaded:
        return
    if runner._load_from is not None:
        problem = _problem(runner._load_from)
        if problem:
            raise ValueError(
                f'resume: {problem}. Name another checkpoint, or none: '
                '--resume alone takes the last one of the work directory '
                'that can be read')
        return
    last = find_latest_checkpoint(runner.work_dir)
    problem = _problem(last) if last else ''
    if last and not problem:
        return
    for path in _others(runner.work_dir, last):
        if _is_resumable(path):
            runner.logger.warning(
                f'FPQ: resume: {problem or "last_checkpoint names none"}; '
                f'the run goes on from {path}')
            runner._load_from = path
            return
    if problem:
        raise ValueError(
            f'resume: {problem}, and {runner.work_dir!r} holds no other '
            'checkpoint. Start the run without --resume, with load_from.')
    raise ValueError(f'resume: there is no checkpoint in {runner.work_dir!r}.'
                     ' Start the run without --resume, with load_from.')


def remove_parts(runner: Runner) -> None:
    """Remove what a killed run left of checkpoints that it was writing.

    Args:
        runner (Runner): The runner, before it writes any.
    """
    if is_main_process() and not runner._has_loaded:
        for name in ('*.pth.part', 'last_checkpoint.part'):
            for path in Path(runner.work_dir).glob(name):
                path.unlink()


def _problem(path: str) -> str:
    """Why a checkpoint cannot be read; empty if it can."""
    if '://' in path:
        return ''
    try:
        load_file(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ''


def _others(work_dir: str, last: str | None) -> list[str]:
    """Other files that may be checkpoints, the likeliest first."""
    files = sorted(Path(work_dir).glob('*.pth'), reverse=True,
                   key=lambda path: path.stat().st_mtime)
    # First that of the same name: the work directory may have been moved.
    files.sort(key=lambda path: path.name != osp.basename(last or ''))
    return [str(path) for path in files]


def _is_resumable(path: str) -> bool:
    try:
        return load_file(path).keys() >= RESUMABLE
    except (OSError, ValueError):
        return False
