"""What is replaced in mmengine and torch, is replaced once."""

import ast
import importlib
import subprocess
import sys

import pytest
import torch
from mmengine.dist import utils as dist_utils
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner
from runs import ROOT

import fpq_plugin
from fpq_plugin._compat import patches


def replaced():
    """Each replaced function, and what it stands for."""
    found = {(kind.__name__, name): getattr(kind, name)
             for kind in (Runner, FlexibleRunner)
             for name in ('train', 'val', 'test')}
    found.update(CheckpointLoader._schemes)
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


@pytest.mark.skipif(
    torch.cuda.is_available(), reason='the launcher is then MMEngine\'s own')
def test_ranks_that_end_right_after_a_collective_end_well(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tests/support/ending_ranks.py', tmp_path],
        capture_output=True, text=True, timeout=300)
    codes = ast.literal_eval(done.stdout.splitlines()[-1])
    assert codes == [0] * 12, done.stderr
