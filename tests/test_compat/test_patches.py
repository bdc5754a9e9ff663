"""What is replaced in mmengine and torch, is replaced once."""

import ast
import errno
import importlib
import subprocess
import sys

import mmengine.runner
import pytest
import torch
from mmengine.dist import utils as dist_utils
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner
from runs import ROOT, train

import fpq_plugin
from fpq_plugin._compat import patches


def replaced():
    """Each replaced function, and what it stands for."""
    found = {(kind.__name__, name): getattr(kind, name)
             for kind in (Runner, FlexibleRunner)
             for name in ('train', 'val', 'test')}
    found.update(CheckpointLoader._schemes)
    for module in (mmengine.runner, mmengine.runner.checkpoint,
                   mmengine.runner.runner):
        found[f'save of {module}'] = module.save_checkpoint
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


@pytest.fixture
def backend():
    """It does not matter here."""
    return 'torch_ao'


def full(*args):
    raise OSError(errno.ENOSPC, 'full')


@pytest.mark.parametrize('writes', ['put', 'open'])
def test_a_full_disk_costs_no_checkpoint(fpq_config, tmp_path, monkeypatch,
                                         writes):
    """CheckpointHook would have removed the old one, and left half of one."""
    hook = {'default_hooks.checkpoint.max_keep_ckpts': 1,
            'default_hooks.checkpoint.save_best': 'auto'}
    train(fpq_config(**hook))
    before = {p.name: p.read_bytes() for p in tmp_path.glob('run/*pth')}
    last = (tmp_path / 'run/last_checkpoint').read_text()
    cfg = fpq_config(resume=True, **hook, **{'train_cfg.max_epochs': 2})
    cfg.load_from = None
    with monkeypatch.context() as patch:
        if writes == 'put':
            patch.setattr(LocalBackend, 'put', half_written)
        else:
            patch.setattr(patches, 'open', full, raising=False)
        with pytest.raises(OSError, match=r"' was not written: No space .*"
                           'go on with --resume') as caught:
            train(cfg)
    name = 'epoch_2.pth' if writes == 'put' else 'last_checkpoint'
    assert f'{name}\'' in str(caught.value)
    after = {p.name: p.read_bytes() for p in tmp_path.glob('run/*pth')}
    assert (before.items() <= after.items())
    assert (tmp_path / 'run/last_checkpoint').read_text() == last
    assert ('epoch_2.pth' in after) == (writes == 'open')
    train(cfg)
    assert {p.name for p in tmp_path.glob('run/epoch*')} == {'epoch_2.pth'}
    assert not list(tmp_path.glob('run/*.part'))


def half_written(self, content, path):
    with open(path, 'wb') as file:
        file.write(content[:len(content) // 2])
    full()


def test_other_backends_write_as_they_do(monkeypatch):
    calls = []
    save = patches._whole(lambda *args: calls.append(args))
    save({}, 's3://bucket/a.pth')
    save({}, 'a.pth', backend_args=dict(backend='petrel'))
    save({}, 'a.pth', dict(backend='petrel'))
    assert calls == [
        ({}, 's3://bucket/a.pth', None, None),
        ({}, 'a.pth', None, dict(backend='petrel')),
        ({}, 'a.pth', dict(backend='petrel'), None)]


@pytest.mark.skipif(
    torch.cuda.is_available(), reason='the launcher is then MMEngine\'s own')
def test_ranks_that_end_right_after_a_collective_end_well(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tests/support/ending_ranks.py', tmp_path],
        capture_output=True, text=True, timeout=300)
    codes = ast.literal_eval(done.stdout.splitlines()[-1])
    assert codes == [0] * 12, done.stderr
