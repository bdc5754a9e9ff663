"""Both backends on Fashion-MNIST itself, and the exported model (slow)."""

import os
from pathlib import Path

import pytest
from mmengine import Config
from runs import CONFIGS, ROOT, scalars_of, train

from fpq_plugin.openmmlab.export_run import export_checkpoint

# Read before other tests point it at the digits.
DATA = Path(os.environ.get('FPQ_DATA_ROOT', ROOT / 'data')) / 'fashion_mnist'

pytestmark = pytest.mark.slow


def one_epoch(name, work_dir, **more):
    """Train one epoch of a config on the real images; its runner."""
    cfg = Config.fromfile(str(CONFIGS / 'fashion_mnist' / name))
    cfg.merge_from_dict({
        'train_cfg.max_epochs': 1,
        'param_scheduler.T_max': 1,
        'default_hooks.logger.interval': 10,
        **{f'{part}_dataloader.dataset.data_root': str(DATA)
           for part in ('train', 'val', 'test')},
        **more
    })
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.dump(str(work_dir.parent / f'{work_dir.name}.py'))
    return train(cfg)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Folder of one FP epoch and one W4A4 epoch on each backend, no SFP."""
    folder = tmp_path_factory.mktemp('fashion')
    one_epoch('resnet_fp.py', folder / 'fp')
    for backend in ('torch_ao', 'brevitas'):
        one_epoch('resnet_fpq_w4a4.py', folder / backend, **{
            'load_from': str(folder / 'fp/epoch_1.pth'),
            'default_hooks.fpq.backend': backend,
            'default_hooks.fpq.perturbation': None})
    return folder


@pytest.mark.parametrize('key', ['loss', 'loss_csd'])
def test_the_loss_curves_are_equal(runs, key):
    one, two = (scalars_of(runs / b, key) for b in ('torch_ao', 'brevitas'))
    assert len(one) == 46
    distance = max(abs(a - b) for a, b in zip(one, two))
    print(f'{key}: {one[0]:.4f} to {one[-1]:.4f}, distance {distance:.2e}')
    assert distance < 1e-4


def test_the_exported_model_answers_as_the_trained_one(runs):
    """ONNX in onnxruntime on the 10,000 test images."""
    report = export_checkpoint(
        str(runs / 'brevitas.py'), str(runs / 'brevitas/epoch_1.pth'),
        runs / 'model.onnx', images=10000)
    print(report)
    assert report.parity.images == 10000
    assert report.parity.top1_trained > 80
    assert abs(report.parity.top1_trained -
               report.parity.top1_exported) <= 0.05
    assert report.parity.equal() >= 99.9
