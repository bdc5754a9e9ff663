"""The measuring hooks in whole runs: their values, and nothing changed."""

import json

import pytest
import torch
from runs import ROOT, log_of, mim, scalars_of, train, weights, write_config

import fpq_plugin  # noqa: F401
from fpq_plugin import HessianTraceHook, OutputVarianceHook, load_model
from fpq_plugin.analysis import hessian_trace
from fpq_plugin.analysis.batches import (
    build_loader,
    draw_batches,
    preprocessed,
)

HOOKS = [
    dict(type='HessianTraceHook', num_images=50, probes=2),
    dict(type='NoiseGradientHook', num_images=50, draws=2),
    dict(type='OutputVarianceHook', num_images=50, draws=2),
    dict(type='SQNRHook', num_images=50),
]
KEYS = ('hessian_trace', 'noise_gradient_clean', 'noise_gradient_feature',
        'noise_gradient_weight', 'output_variance', 'sqnr_weight',
        'sqnr_input', 'sqnr_output')
# A pipeline that draws from numpy's random numbers.
RANDOM_PIPELINE = [
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]


def test_training_is_the_same_with_and_without(fpq_config, tmp_path):
    more = {
        'train_cfg.max_epochs': 2,
        'train_dataloader.dataset.pipeline': RANDOM_PIPELINE,
        'fpq__perturbation.p': 0.5
    }
    plain = fpq_config(folder='plain', **more)
    measured = fpq_config(folder='measured', **more)
    measured.custom_hooks = HOOKS
    train(plain)
    runner = train(measured)
    ours = weights(tmp_path / 'measured/epoch_2.pth')
    theirs = weights(tmp_path / 'plain/epoch_2.pth')
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key

    folder = tmp_path / 'measured'
    for key in KEYS:
        values = scalars_of(folder, key)
        assert len(values) == 3, key
        assert all(v > 0 for v in values if key != 'hessian_trace'), key
        assert len(scalars_of(folder, f'{key}_error')) == 3
    for title in ('hessian_trace', 'noise_gradient', 'output_variance',
                  'sqnr'):
        assert (folder / f'{title}.png').stat().st_size > 5000
        rows = json.loads((folder / f'{title}.json').read_text())
        assert [row['epoch'] for row in rows] == [0, 1, 2]
        # The picture has words for each value.
        hook = next(h for h in runner.hooks
                    if getattr(h, 'title', None) == title)
        assert set(rows[0]) == {'epoch', *(
            f'{title}_{name}'.rstrip('_') for name in hook.labels)}
    assert 'hessian_trace, epoch 2' in log_of(folder)

    # What it logged is what a user measures on the checkpoint.
    model = load_model(measured, str(folder / 'epoch_2.pth'))
    loader = build_loader(measured, 'train')
    batches = preprocessed(
        model, draw_batches(loader, 50, 0, progress=False))
    found = hessian_trace(model, batches, probes=2)
    logged = json.loads((folder / 'hessian_trace.json').read_text())[-1]
    assert logged['hessian_trace']['value'] == pytest.approx(
        found.total.value, rel=1e-3)
    assert all(p.requires_grad for p in runner.model.parameters())


@pytest.mark.parametrize('backend', ['torch_ao'], indirect=True)
def test_every_n_epochs_and_a_resumed_record(fpq_config, tmp_path):
    hook = dict(HOOKS[2], interval=2)
    cfg = fpq_config(**{'train_cfg.max_epochs': 2})
    cfg.custom_hooks = [hook]
    train(cfg)
    cfg = fpq_config(**{'train_cfg.max_epochs': 4})
    cfg.custom_hooks = [hook]
    cfg.resume, cfg.load_from = True, None
    train(cfg)
    rows = json.loads((tmp_path / 'run/output_variance.json').read_text())
    assert [row['epoch'] for row in rows] == [0, 2, 4]


@pytest.mark.parametrize('backend', ['torch_ao'], indirect=True)
def test_mistakes_stop_before_training(fpq_config, tmp_path):
    cfg = fpq_config(folder='layer')
    cfg.custom_hooks = [dict(HOOKS[0], layers=['backbone.layer1.0.conv9'])]
    with pytest.raises(ValueError, match=r'HessianTraceHook\.layers.*Nearest '
                       r'names: backbone\.layer1\.0\.conv'):
        train(cfg)
    cfg = fpq_config(folder='images')
    cfg.custom_hooks = [dict(HOOKS[0], num_images=5000)]
    with pytest.raises(ValueError, match='5000 images asked for, the data '
                       'set has 1400'):
        train(cfg)
    assert not list(tmp_path.glob('*/epoch_*.pth'))


@pytest.mark.slow
def test_two_processes_train_the_same_with_and_without(fp, tmp_path):
    states = []
    for name, hooks in (('plain', []), ('measured', HOOKS)):
        config = write_config(
            tmp_path / f'{name}.py', 'fashion_mnist/resnet_fpq_w4a4.py', **{
                'train_cfg.max_epochs': 1,
                'load_from': str(fp),
                'custom_imports.imports': ['fpq_plugin', 'rank_dump'],
                'custom_hooks': [*hooks, dict(type='RankDump')]
            })
        mim('train', 'mmpretrain', config, '--work-dir', name, '--launcher',
            'pytorch', '--gpus', 2, cwd=tmp_path,
            PYTHONPATH=f'{ROOT}:{ROOT / "tests/support"}')
        states += [
            torch.load(tmp_path / name / f'rank{rank}.pth', weights_only=True)
            for rank in (0, 1)
        ]
    for rank in (0, 1):
        for key, value in states[rank].items():
            assert torch.equal(value, states[2 + rank][key]), key
    rows = json.loads((tmp_path / 'measured/hessian_trace.json').read_text())
    assert [row['epoch'] for row in rows] == [0, 1]


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: HessianTraceHook(interval=0), 'HessianTraceHook.interval'),
    (lambda: HessianTraceHook(probes=1.5), 'HessianTraceHook.probes'),
    (lambda: OutputVarianceHook(num_images=-1),
     'OutputVarianceHook.num_images'),
    (lambda: OutputVarianceHook(draws=1), 'OutputVarianceHook.draws: a var'),
    (lambda: OutputVarianceHook(sigma='x'), 'OutputVarianceHook.sigma: must'),
])
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
