"""An engine's target through the Runner: trained, resumed, tested."""

import shutil

import pytest
import torch
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from runs import log_of, scalars_of, train
from torch import nn

from fpq_plugin import load_model
from fpq_plugin._compat.files import load_file
from fpq_plugin.joints import joints_of
from fpq_plugin.openmmlab.export_run import export_checkpoint
from fpq_plugin.quantizers import named_quantizers

TARGET = {'fpq__target': 'onnxruntime', 'fpq__preset': 'recommended',
          'fpq__perturbation': dict(p=0.5), 'fpq__baselines': False}


@pytest.fixture
def options(fpq_config):
    def make(folder='run', **more):
        cfg = fpq_config(folder=folder, **{**TARGET, **more})
        for key in ('weight', 'activation', 'distillation', 'objective'):
            cfg.default_hooks.fpq.pop(key, None)
        cfg.default_hooks.fpq.bits = 'w4a4'
        return cfg
    return make


def test_trained_resumed_tested_loaded(options, tmp_path):
    """To the bit, with the same quantizers in the same places."""
    runner = train(options('straight', **{'train_cfg.max_epochs': 2}))
    straight, part = tmp_path / 'straight', tmp_path / 'part'
    model = runner.model
    places = [joint.module for joint in joints_of(model)
              if joint.module and joint.side != 'bias']
    assert places
    assert f'quantizes {len(places)} tensors beside' in (
        log_of(straight))
    # All steps are trained, those of the joints too.
    first = load_file(str(straight / 'epoch_1.pth'))['state_dict']
    moved = [name for name, quantizer in named_quantizers(model).items()
             if not torch.equal(quantizer.log_scale,
                                first[f'{name}.log_scale'])]
    assert len(moved) == len(named_quantizers(model))

    part.mkdir()
    for path in (straight / 'epoch_1.pth', *straight.glob('fpq*')):
        shutil.copy(path, part / path.name)
    (part / 'last_checkpoint').write_text(str(part / 'epoch_1.pth'))
    cfg = options('part', resume=True, **{'train_cfg.max_epochs': 2})
    cfg.load_from = None
    train(cfg)
    assert 'calibrates' not in log_of(part)
    ends = [load_file(str(folder / 'epoch_2.pth'))['state_dict']
            for folder in (straight, part)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][key])
               for key, value in ends[0].items())

    cfg = options('test', load_from=str(straight / 'epoch_2.pth'))
    tested = Runner.from_cfg(cfg).test()
    assert tested['accuracy/top1'] == scalars_of(
        straight, 'accuracy/top1')[-1]
    loaded = load_model(cfg, str(straight / 'epoch_2.pth'))
    assert [
        j.module for j in joints_of(loaded)
        if j.module and j.side != 'bias'] == places
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        model.eval()
        assert torch.equal(loaded(x), model(x))


def test_rules_for_parameters_meet_a_shared_quantizer_once(options, tmp_path):
    """MMEngine walks from module to module, and gives each its options."""
    runner = train(options(**{'optim_wrapper.paramwise_cfg': dict(
        norm_decay_mult=0.0,
        custom_keys={'backbone.layer2': dict(lr_mult=0.1)})}))
    model = runner.model
    names = [name for name, _ in model.named_modules(remove_duplicate=False)
             if name.endswith('_quantizer')]
    assert len(names) > len(named_quantizers(model))  # some are shared
    rate = {id(p): group['initial_lr']
            for group in runner.optim_wrapper.optimizer.param_groups
            for p in group['params']}
    base = runner.cfg.optim_wrapper.optimizer.lr
    for name, parameter in model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(
            0.1 * base if name.startswith('backbone.layer2') else base)


def test_averaged_and_accumulated(options, tmp_path):
    """EMAHook copies the joints, and its average is what is tested."""
    cfg = options('run', **{'optim_wrapper.accumulative_counts': 2})
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    train(cfg)
    path = str(tmp_path / 'run/epoch_1.pth')
    other = options('test', load_from=path)
    tested = Runner.from_cfg(other).test()
    assert tested['accuracy/top1'] == scalars_of(
        tmp_path / 'run', 'accuracy/top1')[-1]
    saved = load_file(path)
    steps = [name for name in saved['state_dict']
             if name.endswith('output_quantizer.log_scale')]
    assert steps
    assert all(not torch.equal(saved['state_dict'][name],
                               saved['ema_state_dict'][f'module.{name}'])
               for name in steps)


def test_an_average_of_buffers_is_refused(options):
    cfg = options('run')
    cfg.custom_hooks = [dict(type='EMAHook', update_buffers=True)]
    with pytest.raises(ValueError, match='EMAHook.update_buffers: with '
                       'fpq.target layers share'):
        train(cfg)


def test_with_and_without_a_target_do_not_mix(options, tmp_path):
    train(options('with'))
    train(options('without', fpq__target=None))
    without = str(tmp_path / 'without/epoch_1.pth')
    with pytest.raises(ValueError, match='trained without a target'):
        Runner.from_cfg(options('a', load_from=without)).test()
    with pytest.raises(ValueError, match='trained without a target'):
        load_model(options('a'), without)
    with_one = str(tmp_path / 'with/epoch_1.pth')
    with pytest.raises(ValueError, match='option target, which is missing'):
        Runner.from_cfg(options('b', fpq__target=None,
                                load_from=with_one)).test()
    with pytest.raises(ValueError, match='option target, which is missing'):
        load_model(options('b', fpq__target=None), with_one)


def test_it_is_exported_with_the_training(options, tmp_path):
    train(options('run', fpq__export='model.onnx'))
    assert (tmp_path / 'run/model.onnx').is_file()
    log = log_of(tmp_path / 'run')
    assert 'answers as the trained model' in log
    assert 'after the training' not in log


def test_a_model_trained_without_gets_them_at_its_export(options, tmp_path):
    """Calibrated on training images; what that costs is told."""
    cfg = options('run', fpq__target=None)
    train(cfg)
    report = export_checkpoint(cfg, str(tmp_path / 'run/epoch_1.pth'),
                               tmp_path / 'model.onnx', target='onnxruntime')
    assert report.late_joints > 0
    joined = report.joined
    assert joined.images == 397
    # 8 bits for what was float before; four bits after that amplify it.
    assert joined.equal() > 90
    assert report.parity.top1_trained == joined.top1_exported
    assert f'{report.late_joints} tensors beside the layers' in str(report)
    again = export_checkpoint(cfg, str(tmp_path / 'run/epoch_1.pth'),
                              tmp_path / 'again.onnx', target='onnxruntime')
    assert again.joined == joined
    cfg.train_dataloader = None
    with pytest.raises(ValueError, match='the config has no train_dataloader'):
        export_checkpoint(cfg, str(tmp_path / 'run/epoch_1.pth'),
                          tmp_path / 'no.onnx', target='onnxruntime')


@MODELS.register_module()
class GatedBackbone(nn.Module):
    """Layers with both activations that have a gate."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
            nn.Conv2d(8, 32, 3, bias=False), nn.BatchNorm2d(32), nn.SiLU(),
            nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32))

    def forward(self, x):
        return self.layers(x),


def test_gates_are_trained_with_resumed_and_exported(options, tmp_path):
    """They have no step to learn, and are there in every checkpoint."""
    def of(folder, **more):
        cfg = options(folder, fpq__export='model.onnx', **more)
        cfg.model.backbone = dict(type='GatedBackbone')
        cfg.load_from = None if cfg.get('resume') else float_path
        return cfg

    float_path = str(tmp_path / 'float.pth')
    torch.save(dict(state_dict=MODELS.build(of('run').model).state_dict()),
               float_path)
    model = train(of('run')).model
    gates = [j.module for j in joints_of(model) if j.side == 'gate']
    assert gates == ['backbone.layers.2', 'backbone.layers.5']
    assert 'backbone.layers.2.gate' in log_of(tmp_path / 'run')
    assert '2 QLinearMul' in log_of(tmp_path / 'run')
    path = str(tmp_path / 'run/epoch_1.pth')
    loaded = load_model(of('test'), path)
    assert joints_of(loaded) == joints_of(model)
    again = train(of('run', resume=True, **{'train_cfg.max_epochs': 2})).model
    assert joints_of(again) == joints_of(model)
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), load_model(of('test'), path)(x))
