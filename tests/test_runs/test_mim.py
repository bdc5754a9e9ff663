"""The commands of the manual, as a user types them."""

import os
import re
import signal
import subprocess

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.dataset import pseudo_collate
from mmengine.fileio import load
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmpretrain import ImageClassificationInferencer
from norm_free import NormFreeNet
from runs import (
    ROOT,
    log_of,
    mim,
    mim_command,
    scalars_of,
    train,
    weights,
    write_config,
)

from fpq_plugin import load_model
from fpq_plugin._compat.files import load_file

BASE = 'fashion_mnist/resnet_fpq_w4a4.py'


@pytest.fixture
def elsewhere(tmp_path):
    """A working directory that has nothing to do with the checkout."""
    folder = tmp_path / 'else where'
    folder.mkdir()
    return folder


def test_kill_in_the_third_epoch_and_resume(fp, tmp_path, elsewhere,
                                            backend):
    """4 epochs straight = 2 + kill -9 in the third + --resume; then test."""
    config = write_config(tmp_path / 'mine.py', BASE, **{
        'train_cfg.max_epochs': 4, 'load_from': str(fp),
        'default_hooks.fpq.backend': backend})
    shared = ['--cfg-options', 'default_hooks.fpq.perturbation.p=0.5']
    mim('train', 'mmpretrain', config, '--work-dir', 'straight', *shared,
        cwd=elsewhere)
    dumped = Config.fromfile(elsewhere / 'straight/mine.py')
    assert dumped.default_hooks.fpq.perturbation.p == 0.5
    killed = elsewhere / 'killed'
    process = subprocess.Popen(
        mim_command('train', 'mmpretrain', config, '--work-dir', killed,
                    *shared),
        cwd=elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True)
    for line in process.stdout:
        if 'Epoch(train) [3]' in line:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert (killed / 'last_checkpoint').read_text().endswith('epoch_2.pth')
    out = mim('train', 'mmpretrain', config, '--work-dir', killed, '--resume',
              *shared, cwd=elsewhere)
    assert 'resumed epoch: 2' in out
    assert 'FPQ: the teacher is' in out
    assert 'FPQ calibrates' not in out

    ends = [load_file(f'{elsewhere}/{name}/epoch_4.pth')
            for name in ('straight', 'killed')]
    state, other = (end['state_dict'] for end in ends)
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    momenta = [end['optimizer']['state'] for end in ends]
    assert momenta[0].keys() == momenta[1].keys()
    for key, slot in momenta[0].items():
        assert torch.equal(slot['momentum_buffer'],
                           momenta[1][key]['momentum_buffer'])
    accuracy = [scalars_of(elsewhere / name, 'accuracy/top1')[-1]
                for name in ('straight', 'killed')]
    assert accuracy[0] == accuracy[1]

    out = mim('test', 'mmpretrain', config, '--checkpoint',
              killed / 'epoch_4.pth', '--work-dir', 'tested',
              '--out', elsewhere / 'out.pkl', *shared, cwd=elsewhere)
    tested = float(re.findall(r'accuracy/top1: ([\d.]+)', out)[-1])
    assert tested == pytest.approx(accuracy[0], abs=1e-3)
    check_inference(elsewhere / 'straight/mine.py',
                    killed / 'epoch_4.pth', elsewhere / 'out.pkl')


def check_inference(config, checkpoint, dumped):
    """One call loads the model; its scores are those mim test wrote."""
    model = load_model(str(config), str(checkpoint))
    assert not model.training
    dataset = DATASETS.build(model._config.test_dataloader.dataset)
    results = load(dumped)
    size = model._config.test_dataloader.batch_size
    for start in range(0, len(dataset), size):
        batch = pseudo_collate(
            [dataset[i]
             for i in range(start, min(start + size, len(dataset)))])
        with torch.no_grad():
            scores = model.test_step(batch)
        for sample, saved in zip(scores, results[start:]):
            assert torch.equal(sample.pred_score, saved['pred_score'])
    inferencer = ImageClassificationInferencer(
        model, classes=list('0123456789'))
    image = np.zeros((8, 8, 1), np.uint8)
    assert inferencer(image)[0]['pred_class'] in '0123456789'


@pytest.mark.parametrize('how', ['bits', 'settings'])
def test_load_model_refuses_another_config(digits, fp, fpq_config, how):
    cfg = fpq_config()
    train(cfg)
    other = fpq_config('fashion_mnist/resnet_fpq_w2a2.py') \
        if how == 'bits' else fpq_config(fpq__skip=['head'])
    with pytest.raises(ValueError, match='quantized otherwise'):
        load_model(other, f'{cfg.work_dir}/epoch_1.pth')


@pytest.fixture
def norm_free(digits, tmp_path):
    """Options of a net without batch norm, and its FP checkpoint."""
    init_default_scope('mmpretrain')
    torch.manual_seed(1)
    head = dict(type='LinearClsHead', num_classes=10, in_channels=16,
                loss=dict(type='CrossEntropyLoss'))
    model = MODELS.build(
        dict(type='mmpretrain.ImageClassifier',
             backbone=dict(type=NormFreeNet),
             neck=dict(type='mmpretrain.GlobalAveragePooling'),
             head=head))
    path = tmp_path / 'fp.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def run_on(gpus, fp, elsewhere, **more):
    """One epoch of 14 joint batches of 100; the run's folder."""
    tests = ROOT / 'tests/support'
    config = write_config(
        elsewhere / f'on{gpus}.py', BASE, **{
            'train_cfg.max_epochs': 1,
            'load_from': str(fp),
            'train_dataloader.batch_size': 100 // gpus,
            'train_dataloader.sampler.shuffle': False,
            'custom_imports.imports':
            ['fpq_plugin', 'rank_dump', 'norm_free'],
            'custom_hooks': [dict(type='RankDump')],
            **more
        })
    launch = ['--launcher', 'pytorch', '--gpus', gpus] if gpus > 1 else []
    mim('train', 'mmpretrain', config, '--work-dir', f'run{gpus}', *launch,
        cwd=elsewhere, PYTHONPATH=f'{ROOT}:{tests}')
    return elsewhere / f'run{gpus}'


STOCK = {
    'default_hooks.fpq.weight': dict(
        type='Int8WeightPerChannelFloat', bits=4,
        let=dict(scaling_impl_type='parameter_from_stats')),
    'default_hooks.fpq.activation': dict(
        type='ShiftedUint8ActPerTensorFloat', bits=4),
}


EXPORT = {'default_hooks.fpq.export': 'model.onnx',
          'default_hooks.fpq.target': 'onnxruntime'}


@pytest.mark.parametrize(
    ('backend', 'more', 'zero_points'),
    [('torch_ao', EXPORT, 47), ('brevitas', {}, 34), ('brevitas', STOCK, 17)],
    ids=['torch_ao', 'brevitas', 'brevitas_stock'])
def test_two_processes_end_bit_identical(digits, fp, elsewhere, backend, more,
                                         zero_points):
    """Batch norm, SFP and CSD on: all parameters and zero points agree.

    An export at the end compares on all of the test set.
    """
    folder = run_on(2, fp, elsewhere, **more, **{
        'default_hooks.fpq.backend': backend,
        'default_hooks.fpq.perturbation.p': 0.5})
    ranks = [torch.load(folder / f'rank{r}.pth', weights_only=True)
             for r in (0, 1)]
    saved = weights(folder / 'epoch_1.pth')
    keys = [k for k in saved if 'running_' not in k]
    assert sum('zero_point' in k for k in keys) == zero_points
    for key in keys:
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        assert torch.equal(ranks[0][key], saved[key]), key
    if more is EXPORT:
        assert (folder / 'model.onnx').exists()
        assert 'on 397 images' in log_of(folder)


@pytest.mark.parametrize(('backend', 'distillation', 'preset'), [
    ('torch_ao', 'None', 'paper'), ('torch_ao', 'synced', 'recommended'),
    ('brevitas', 'synced', 'paper')])
def test_two_processes_equal_the_joint_batch(digits, norm_free, elsewhere,
                                             backend, distillation, preset):
    """Without SFP and norms, one step on two ranks is one on the joint
    batch."""
    more = {
        'model.backbone': dict(_delete_=True, type='NormFreeNet'),
        'model.head.in_channels': 16,
        'default_hooks.fpq.backend': backend,
        'default_hooks.fpq.preset': preset,
        'default_hooks.fpq.perturbation': None,
        # The share of the range that 'mse' takes is one of each batch.
        'default_hooks.fpq.activation.observer': 'min_max',
        # Four steps: later ones amplify a rounding that falls the other way.
        'train_dataloader.dataset.indices': 400,
    }
    if distillation == 'None':
        more['default_hooks.fpq.distillation'] = None
    else:
        more['default_hooks.fpq.distillation.sync'] = True
    first, second = (
        torch.load(
            run_on(gpus, norm_free, elsewhere, **more) / 'rank0.pth',
            weights_only=True) for gpus in (1, 2))
    start = weights(norm_free)
    moved = 0
    for key, value in first.items():
        # Input scales hardly move: their own tolerance, for LSQ's n to show.
        near = (dict(rtol=1e-5, atol=5e-8) if key.endswith(
            'input_quantizer.scale') else dict(rtol=0, atol=1e-5)
            if key.endswith('log_scale') else dict(rtol=1e-3, atol=1e-5))
        torch.testing.assert_close(second[key], value, **near, msg=key)
        if key in start:
            moved += (value - start[key]).abs().max().item()
    assert moved > 1e-3
