"""Checkpoints that release 0.1.0 wrote: they load, resume and are exported."""

import shutil
from pathlib import Path

import pytest
import torch
from runs import ROOT, log_of, train

from fpq_plugin import load_model
from fpq_plugin.export import export_checkpoint

RELEASE = ROOT / 'tests/data/release_0_1_0'


@pytest.fixture
def old(fpq_config, backend):
    """The config that made the checkpoint, and the checkpoint's folder."""
    return fpq_config(fpq__perturbation=dict(p=0.5), fpq__preset='paper', **{
        'model.backbone.base_channels': 4,
        'model.backbone.stem_channels': 4,
        'model.head.in_channels': 16,
        'train_cfg.max_epochs': 2,
    }), RELEASE / backend


def test_it_answers_as_it_did(old):
    cfg, folder = old
    model = load_model(cfg, str(folder / 'epoch_1.pth'))
    then = torch.load(folder / 'answer.pth', weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(model(then['input']), then['output'])


def test_todays_default_does_not_fit_it(old):
    cfg, folder = old
    cfg.default_hooks.fpq.preset = 'recommended'
    path = str(folder / 'epoch_1.pth')
    with pytest.raises(ValueError, match='the default once and is '
                       "preset='paper' now. Use the config"):
        load_model(cfg, path)
    cfg.load_from, cfg.resume = path, True
    with pytest.raises(ValueError, match="preset='paper' now. Resume with"):
        train(cfg)


def test_it_resumes(old):
    cfg, folder = old
    work = Path(cfg.work_dir)
    shutil.copytree(folder, work)
    cfg.load_from, cfg.resume = str(work / 'epoch_1.pth'), True
    runner = train(cfg)
    assert runner.epoch == 2
    log = log_of(work)
    assert 'resumed epoch: 1' in log
    assert 'FPQ calibrates' not in log
    assert next(folder.glob('fpq_teacher*')).name in log


def test_it_is_exported(old, tmp_path):
    cfg, folder = old
    report = export_checkpoint(cfg, str(folder / 'epoch_1.pth'),
                               tmp_path / 'old.onnx')
    assert report.parity.equal() == 100


@pytest.mark.parametrize(('option', 'message'), [
    (dict(weight=dict(type='DoReFaFakeQuantize', bits=4)),
     'LSQFakeQuantize in the checkpoint, DoReFaFakeQuantize in the config'),
    (dict(activation=dict(type='PACTFakeQuantize', bits=4)), 'PACTFakeQ'),
    (dict(activation=dict(bits=4, signed=True)), 'unsigned in the checkpo'),
    (dict(weight=dict(bits=4, per_channel=False)), 'per channel'),
])
def test_it_is_not_taken_for_one_of_other_quantizers(old, option, message):
    """Its keys do not tell all of these apart; the config in it does."""
    cfg, folder = old
    if cfg.default_hooks.fpq.backend == 'brevitas' and 'DoReFa' in message:
        pytest.skip('Brevitas has no DoReFa')
    cfg.default_hooks.fpq.update(option)
    with pytest.raises(ValueError, match='quantized otherwise.*' + message):
        load_model(cfg, str(folder / 'epoch_1.pth'))
