"""What is replaced in mmengine and torch, is replaced once."""

import ast
import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs
import torch
from mmengine.dist import utils as dist_utils
from mmengine.hooks import CheckpointHook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner
from runs import ROOT

import fpq_plugin
from fpq_plugin._compat import patches
from fpq_plugin._compat.files import load_file


def replaced():
    """Each replaced function, and what it stands for."""
    found = {(kind.__name__, name): getattr(kind, name)
             for kind in (Runner, FlexibleRunner)
             for name in ('train', 'val', 'test')}
    found.update(CheckpointLoader._schemes)
    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        found[name] = getattr(CheckpointHook, name)
    if not torch.cuda.is_available():
        found['launch'] = dist_utils._init_dist_pytorch
        found['ddp'] = MMDistributedDataParallel.__init__
    return {name: function._fpq_original for name, function in found.items()}


def test_a_reload_replaces_the_originals_again():
    before = replaced()
    importlib.reload(fpq_plugin)
    assert replaced() == before
    assert not any(hasattr(original, '_fpq_original')
                   for original in before.values())


def test_a_second_call_calls_once(monkeypatch):
    calls = []
    for kind in (Runner, FlexibleRunner):
        for name in ('train', 'val', 'test'):
            monkeypatch.setattr(kind, name, getattr(kind, name))
    monkeypatch.setattr(Runner.train, '_fpq_original',
                        lambda runner: calls.append('train'))
    for number in (1, 2):
        patches._watch_runners(
            lambda runner, verb, n=number: calls.append(f'before {verb} {n}'),
            lambda runner, verb, n=number: calls.append(f'after {verb} {n}'))
    Runner.train(object())
    assert calls == ['before train 2', 'train', 'after train 2']


def test_the_end_is_told_of_an_error_too(monkeypatch):
    calls = []
    for kind in (Runner, FlexibleRunner):
        for name in ('train', 'val', 'test'):
            monkeypatch.setattr(kind, name, getattr(kind, name))

    def broken(runner):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner.train, '_fpq_original', broken)
    patches._watch_runners(
        lambda runner, verb: None, lambda *told: calls.append(told))
    runner = object()
    with pytest.raises(KeyboardInterrupt):
        Runner.train(runner)
    assert calls == [(runner, 'train')]


KEEP_ONE = dict(checkpoint=dict(type='CheckpointHook', interval=1,
                                max_keep_ckpts=1, save_best='right',
                                rule='greater'))


def best(epoch):
    return f'best_right_epoch_{epoch}.pth'


@pytest.mark.parametrize('name', ['epoch_2.pth', best(2), 'last_checkpoint'])
def test_a_full_disk_costs_no_checkpoint(tmp_path, monkeypatch, name):
    """CheckpointHook of itself has removed the one before by then."""
    cfg = small_runs.config(tmp_path, load_from=small_runs.start(tmp_path))
    cfg.default_hooks.update(KEEP_ONE)
    # Each epoch is better than the one before.
    rights = iter(range(9))
    monkeypatch.setattr(small_runs.Right, 'compute_metrics',
                        lambda self, results: dict(right=next(rights)))
    work = small_runs.train(cfg).work_dir
    before = contents(work)
    assert before.keys() >= {'epoch_1.pth', best(1), 'last_checkpoint'}
    cfg.update(resume=True, load_from=None, experiment_name=f'full {name}',
               train_cfg=dict(by_epoch=True, max_epochs=2))
    replace = os.replace

    def full(part, target):
        if os.path.basename(target) == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', full)
        with pytest.raises(OSError, match=f"{name}' was not written: No space "
                           'left on device.*What was saved before is whole'):
            small_runs.train(cfg)
    after = contents(work)
    if name == best(2):
        # epoch_2.pth was whole by then, and has taken the place.
        assert after['last_checkpoint'].endswith(b'epoch_2.pth')
        assert load_file(f'{work}/epoch_2.pth')['meta']['epoch'] == 2
        del before['epoch_1.pth'], before['last_checkpoint']
    assert all(after[kept] == before[kept] for kept in before)
    assert not list(Path(work).glob('.*'))
    cfg.experiment_name += ' again'
    small_runs.train(cfg)
    assert {'epoch_2.pth', 'last_checkpoint'} <= contents(work).keys()
    assert (Path(work) / 'last_checkpoint').read_text().endswith('epoch_2.pth')


def contents(work):
    return {path.name: path.read_bytes() for path in Path(work).iterdir()
            if path.is_file() and path.suffix in ('', '.pth')}


def test_the_old_ones_are_removed_once_the_new_are_there(tmp_path,
                                                         monkeypatch):
    cfg = small_runs.config(tmp_path, load_from=small_runs.start(tmp_path),
                            train_cfg=dict(by_epoch=True, max_epochs=3))
    cfg.default_hooks.update(KEEP_ONE)
    rights = iter(range(9))
    monkeypatch.setattr(small_runs.Right, 'compute_metrics',
                        lambda self, results: dict(right=next(rights)))
    work = small_runs.train(cfg).work_dir
    assert {name for name in contents(work) if 'epoch' in name} == {
        'epoch_3.pth', best(3)}


@pytest.mark.skipif(
    torch.cuda.is_available(), reason='the launcher is then MMEngine\'s own')
def test_ranks_that_end_right_after_a_collective_end_well(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tests/support/ending_ranks.py', tmp_path],
        capture_output=True, text=True, timeout=300)
    codes = ast.literal_eval(done.stdout.splitlines()[-1])
    assert codes == [0] * 12, done.stderr
