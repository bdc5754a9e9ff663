"""Settings of every test; data, checkpoints and an analysis, made once."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections import OrderedDict  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from mmengine import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from runs import ROOT, config, make_digits, train, write_config  # noqa: E402

from fpq_plugin import targets  # noqa: E402
from fpq_plugin.export import formats  # noqa: E402

# Those run where there is what they need: tox -e dense; a GPU.
collect_ignore = ([] if find_spec('mmdet') else ['test_dense']) + (
    [] if torch.cuda.is_available() else ['test_cuda'])

torch.set_num_threads(1)
settings.register_profile(
    'fpq',
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('fpq')


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch):
    """No seed, scope or registered target of the test before."""
    torch.manual_seed(0)
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())
    monkeypatch.setattr(formats, '_FORMATS', dict(formats._FORMATS))
    monkeypatch.setattr(targets, '_TARGETS', dict(targets._TARGETS))


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Folder with the data and ``resnet_fp/epoch_3.pth``; set in the env."""
    folder = tmp_path_factory.mktemp('digits')
    make_digits(folder / 'data/fashion_mnist')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FPQ_DATA_ROOT', str(folder / 'data'))
        patch.setenv('FPQ_WORK_DIRS', str(folder / 'work_dirs'))
        patch.setenv('OMP_NUM_THREADS', '1')
        train(
            config('fashion_mnist/resnet_fp.py',
                   folder / 'work_dirs/resnet_fp',
                   **{'train_cfg.max_epochs': 3}))
        yield folder


@pytest.fixture
def fp(digits):
    """The full-precision checkpoint."""
    return digits / 'work_dirs/resnet_fp/epoch_3.pth'


@pytest.fixture(params=['torch_ao', 'brevitas'])
def backend(request):
    """Whole runs are tested on each backend."""
    return request.param


@pytest.fixture
def fpq_config(digits, fp, tmp_path, backend):
    """Makes an FPQ config; keywords as for :func:`runs.config`."""

    def make(name='fashion_mnist/resnet_fpq_w4a4.py', folder='run', **more):
        more = {
            'load_from': str(fp),
            'train_cfg.max_epochs': 1,
            'default_hooks.fpq.backend': backend,
            **{k.replace('fpq__', 'default_hooks.fpq.'): v
               for k, v in more.items()}
        }
        return config(name, tmp_path / folder, **more)

    return make


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
    write_config(folder / 'full.py', 'fashion_mnist/resnet_fp.py')
    write_config(
        folder / 'quantized.py', 'fashion_mnist/resnet_fpq_w4a4.py', **{
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
