"""``python -m fpq_plugin.analysis`` in whole, and what it refuses."""

import json
import math
import re
import subprocess
import sys

import pytest
import torch
from mmengine import Config
from runs import ROOT, train, write_config

from fpq_plugin import load_model
from fpq_plugin.analysis import hessian_trace, mean_loss
from fpq_plugin.analysis.batches import (
    build_loader,
    draw_batches,
    preprocessed,
)
from fpq_plugin.analysis.command import main
from fpq_plugin.analysis.trained_models import load_trained_models

FPQ = 'fashion_mnist/resnet_fpq_w4a4.py'
FULL = 'fashion_mnist/resnet_fp.py'
LAYER = 'backbone.layer2.0.conv1'
PICTURES = {
    'fig1_output_variance', 'fig2_noise_gradient', 'fig3_channel_ranges',
    'fig4_histograms', 'fig5_trace', 'layer_traces', 'spectrum', 'slice_1d',
    'slices_2d', 'sqnr'
}


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """Folder with an FP and an FPQ config, and checkpoints of two epochs."""
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
    return folder


def pairs(trained, *names):
    """Arguments for the names 'full', 'epoch_1' and 'epoch_2'."""
    return [
        str(trained / part) for name in names
        for part in ('full.py' if name == 'full' else 'quantized.py',
                     f'{name}.pth')
    ]


def refused(capsys, *argv):
    """The command's error message."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    return str(stop.value)


def test_the_command(trained, tmp_path):
    out = tmp_path / 'out'
    done = subprocess.run(
        [sys.executable, '-m', 'fpq_plugin.analysis',
         *pairs(trained, 'full', 'epoch_1', 'epoch_2'), '--images', '12',
         '--probes', '4', '--layer', LAYER, '--out', str(out)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert '[3/3] quantized epoch_2' in done.stdout
    assert 'Hessian trace' in done.stdout

    assert {p.stem for p in out.glob('*.png')} == PICTURES
    page = (out / 'report.html').read_text()
    assert page.count('<img src="data:image/png;base64,') == len(PICTURES)
    assert 'http' not in page.replace('data:image', '')
    study = json.loads((out / 'analysis.json').read_text())
    assert study['command'].startswith('python -m fpq_plugin.analysis ')
    assert study['layer'] == LAYER
    models = study['models']
    assert list(models) == ['full', 'quantized epoch_1', 'quantized epoch_2']
    assert [m['epoch'] for m in models.values()] == [3, 1, 2]
    # Everything of each run's last checkpoint, the course of the others.
    assert ['layers' in m for m in models.values()] == [True, False, True]
    assert set(study['features']['channels']) == {
        'full', 'quantized', 'naive quantization'}
    rows = {r['name']: r for r in models['quantized epoch_2']['layers']}
    assert rows[LAYER]['weight_bits'] == 4
    assert rows['head.fc']['weight_bits'] == 8
    assert rows[LAYER]['sqnr']['output'] > 0
    assert all(r['sqnr'] is None for r in models['full']['layers'])

    # The numbers are those of the functions.
    model = load_model(*pairs(trained, 'epoch_2'))
    loader = build_loader(
        Config.fromfile(str(trained / 'full.py')), 'train')
    batches = preprocessed(
        model, draw_batches(loader, 12, 0, progress=False))
    found = models['quantized epoch_2']
    assert math.isclose(found['loss'], mean_loss(model, batches),
                        rel_tol=1e-5)
    trace = hessian_trace(model, batches, 4)
    assert math.isclose(found['trace']['value'], trace.total.value,
                        rel_tol=1e-4)


def test_naive_is_calibrated_only(trained):
    from fpq_plugin.analysis import naive_quantization
    from fpq_plugin.state import float_state
    full = load_model(*pairs(trained, 'full'))
    cfg = Config.fromfile(str(trained / 'quantized.py'))
    batches = preprocessed(
        full, draw_batches(build_loader(cfg, 'train'), 40, 0, False))
    naive = naive_quantization(full, cfg, batches)
    assert not hasattr(full.backbone.conv1, 'weight_quantizer')
    assert naive.backbone.conv1.weight_quantizer.is_initialized()
    for key, value in full.state_dict().items():
        assert torch.equal(float_state(naive)[key], value)


def test_load_model_takes_a_full_precision_config(trained):
    model = load_model(*pairs(trained, 'full'))
    saved = torch.load(trained / 'full.pth', weights_only=False)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved['state_dict'][key])


@pytest.mark.parametrize(('config', 'checkpoint', 'message'), [
    ('quantized.py', 'full.pth', 'is of a full-precision model'),
    ('full.py', 'epoch_1.pth', 'was trained with FPQ'),
    ('quantized.py', 'epoch_9.pth', "no checkpoint '.*epoch_9.pth'"),
    ('other.py', 'full.pth', "no config '.*other.py'"),
    ('wide.py', 'full.pth', r"(?s)does not fit '.*wide.py'.*another shape.*"
     r'backbone.conv1.weight \(8, 1, 3, 3\) instead of \(12, 1, 3, 3\)'),
])
def test_a_checkpoint_that_does_not_fit(trained, capsys, config, checkpoint,
                                        message):
    write_config(trained / 'wide.py', FULL,
                 **{'model.backbone.stem_channels': 12})
    told = refused(capsys, trained / config, trained / checkpoint)
    assert re.search(message, told), told


def test_other_mistakes(trained, capsys, tmp_path, monkeypatch):
    args = pairs(trained, 'full')
    assert 'no partner' in refused(capsys, *args, 'x.py')
    told = refused(capsys, *args, '--layer', 'backbone.layer2.0.conv9')
    assert '--layer' in told
    assert 'Nearest names: backbone.layer2.0.conv' in told
    assert '9999 images asked for, the data set has 1400' in refused(
        capsys, *args, '--images', '9999')
    assert 'is given twice' in refused(capsys, *args, *args)
    assert '--device abacus' in refused(capsys, *args, '--device', 'abacus')
    monkeypatch.setenv('FPQ_DATA_ROOT', str(tmp_path))
    told = refused(capsys, *args)
    assert 'no data: train_dataloader' in told


def test_a_missing_package_is_named(trained, capsys, monkeypatch):
    monkeypatch.setattr('fpq_plugin.analysis.measuring.find_spec',
                        lambda name: None)
    assert "pip install 'fpq-openmmlab[analysis]'" in refused(
        capsys, *pairs(trained, 'full'))


def test_configs_of_one_name_are_told_apart(trained, tmp_path):
    other = tmp_path / 'full.py'
    other.write_bytes((trained / 'full.py').read_bytes())
    full = pairs(trained, 'full')
    models = load_trained_models([tuple(full), (str(other), full[1])])
    assert [s.run for s in models] == [
        str(trained / 'full'), str(tmp_path / 'full')]
    assert [s.run for s in load_trained_models([tuple(full)])] == ['full']
