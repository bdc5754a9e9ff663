"""Models trained once, and one analysis of them, for all its tests."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from mmengine import Config
from runs import ROOT, train, write_config

FPQ = 'fashion_mnist/resnet_fpq_w4a4.py'
FULL = 'fashion_mnist/resnet_fp.py'


class Trained:
    """A folder with an FP and an FPQ config, and their checkpoints."""

    layer = 'backbone.layer2.0.conv1'

    def __init__(self, folder):
        self.folder = folder

    def pairs(self, *names):
        """Arguments for the names 'full', 'epoch_1' and 'epoch_2'."""
        return [
            str(self.folder / part) for name in names
            for part in ('full.py' if name == 'full' else 'quantized.py',
                         f'{name}.pth')
        ]

    def config(self, name):
        """The config 'full' or 'quantized'."""
        return Config.fromfile(str(self.folder / f'{name}.py'))


@pytest.fixture(scope='session')
def trained(digits, tmp_path_factory):
    """One epoch of the FP model, two of FPQ."""
    folder = tmp_path_factory.mktemp('trained')
    full = digits / 'work_dirs/resnet_fp/epoch_3.pth'
    write_config(folder / 'full.py', FULL)
    write_config(
        folder / 'quantized.py', FPQ, **{
            'load_from': str(full),
            'train_cfg.max_epochs': 2
        })
    (folder / 'full.pth').write_bytes(full.read_bytes())
    cfg = Config.fromfile(str(folder / 'quantized.py'))
    cfg.work_dir, cfg.experiment_name = str(folder), 'analysis_command'
    train(cfg)
    return Trained(folder)


@pytest.fixture(scope='session')
def analysed(trained, tmp_path_factory):
    """What the command wrote and said, its output being piped."""
    out = tmp_path_factory.mktemp('analysed') / 'out'
    done = subprocess.run(
        [sys.executable, '-m', 'fpq_plugin.analysis',
         *trained.pairs('full', 'epoch_1', 'epoch_2'), '--images', '12',
         '--probes', '4', '--layer', trained.layer, '--out', str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(
        out=out, stdout=done.stdout, stderr=done.stderr,
        study=json.loads((out / 'analysis.json').read_text()))
