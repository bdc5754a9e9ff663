"""Both backends on Fashion-MNIST itself, and the exported model (slow)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine import Config
from runs import CONFIGS, ROOT, scalars_of, train

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
    """QCDQ in onnxruntime on the 10,000 test images."""
    out = subprocess.run(
        [sys.executable, ROOT / 'tools/export_qcdq.py', runs / 'brevitas.py',
         runs / 'brevitas/epoch_1.pth', runs / 'model.onnx'],
        stdout=subprocess.PIPE, text=True, check=True).stdout
    print(out)
    figures = json.loads(out[out.index('{'):])
    assert figures['images'] == 10000
    assert figures['top1_torch'] > 80
    assert abs(figures['top1_torch'] - figures['top1_onnx']) <= 0.05
    # A value on a rounding edge may fall to the next step, no more.
    assert figures['other_class'] <= 10
    assert figures['images_with_equal_logits'] >= 9500
    assert figures['largest_distance'] < figures['spread'] / 2
