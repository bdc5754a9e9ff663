"""Wrong configs stop before the first iteration and name key and mend."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from runs import CONFIGS, config, train

from fpq_plugin import FPQHook
from fpq_plugin._compat.files import load_file
from fpq_plugin.openmmlab.config_checks import refuse_unread


@pytest.mark.parametrize(('option', 'message'), [
    (dict(weight=dict(bits=1)), 'fpq.weight.bits: must be an integer'),
    (dict(activation=dict(bits=9)), 'fpq.activation.bits: must be an integer'),
    (dict(perturbation=dict(p=1.2)), 'fpq.perturbation.p: must be a prob'),
    (dict(perturbation=dict(q=1)), "perturbation: unknown option 'q'"),
    (dict(distillation=dict(weight=1)), "distillation: unknown option 'weig"),
    (dict(distillation=dict(type='KD')), "distillation.type: 'KD' is not"),
    (dict(distillation=dict(type='LSQFakeQuantize', bits=4)),
     "distillation.type: 'LSQFakeQuantize' is no class of kind Distillat"),
    (dict(weight=dict(type='CSDLoss', bits=4)),
     "weight.type: 'CSDLoss' is no class of kind Quantizer"),
    (dict(activation=dict(type='StochasticFeaturePerturbation')),
     "activation.type: 'StochasticFeaturePerturbation' is no class of kind"),
    (dict(activation=dict(type=5)), 'activation.type: 5 is no class of kind'),
    (dict(perturbation=dict(type='LSQFakeQuantize', bits=4)),
     "'LSQFakeQuantize' is no class of kind StochasticFea"),
    (dict(overrides=dict(x=dict(weight=dict(type='CSDLoss')))),
     r"overrides\['x'\].weight.type: 'CSDLoss' is no class of kind Quantizer"),
    (dict(weigth=None), "fpq: unknown option 'weigth'. Did you mean 'weight'"),
    (dict(backend='tensorrt'), "backend: must be 'brevitas' or 'torch_"),
    (dict(calibration=dict(num_images=0)), 'must be a positive integer'),
    (dict(calibration=dict(images=5)), "fpq.calibration: unknown option"),
    (dict(scale_lr_mult=-1), 'fpq.scale_lr_mult: must be a number >= 0'),
])
def test_options_are_refused_when_the_runner_is_built(option, message,
                                                      backend):
    with pytest.raises(ValueError, match=message):
        FPQHook(**{'backend': backend, **option})


def test_a_wrong_value_stops_the_runner_and_leaves_the_work_dir(
        fpq_config, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'epoch_1.pth').write_bytes(b'kept')
    cfg = fpq_config(fpq__perturbation=dict(p=1.2))
    with pytest.raises(ValueError, match='fpq.perturbation.p: must be'):
        Runner.from_cfg(cfg)
    assert (folder / 'epoch_1.pth').read_bytes() == b'kept'
    assert not list(folder.glob('*.py'))


@pytest.mark.parametrize(('more', 'message'), [
    (dict(fpq__skip=['backbone.layer9']), "skip: the pattern 'backbone.lay"),
    (dict(fpq__overrides={'neck': dict(weight=None)}),
     "overrides: the pattern 'neck' matches no layer"),
    (dict(fpq__skip=['*']), 'nothing to quantize'),
    (dict(load_from=None), 'FPQ starts from a full-precision model, and none'),
    (dict(load_from='/none/there.pth'), "load_from: no file '/none/there.pt"),
    (dict(fpq__teacher='/none/there.pth'), "fpq.teacher: no file"),
    (dict(fpq__calibration=dict(num_images=5000)),
     r'calibration.num_images: 5000 images asked for, the training set has '
     '1400'),
    ({'model.backbone.depth': 34}, 'load_from: .* does not fit the model:\n'
     '  missing: backbone.layer1.2.conv1.weight'),
    ({'model.head.num_classes': 7},
     r'of another shape: head.fc.weight \(10, 32\) instead of \(7, 32\)'),
])
def test_runs_are_refused_before_the_first_iteration(fpq_config, more,
                                                     message):
    cfg = fpq_config(**more)
    with pytest.raises(ValueError, match=message):
        train(cfg)
    assert not list(Path(cfg.work_dir).glob('epoch_*'))


@pytest.mark.parametrize('content', [b'no pickle', b''])
def test_a_teacher_that_is_no_checkpoint(fpq_config, tmp_path, content):
    path = tmp_path / 'teacher.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='fpq.teacher: .* is not a checkpoin'):
        train(fpq_config(fpq__teacher=str(path)))


def test_a_teacher_of_another_architecture_or_quantized(fpq_config, tmp_path,
                                                        fp):
    state = load_file(str(fp))['state_dict']
    other = {k.replace('layer3', 'layer4'): v for k, v in state.items()}
    torch.save(other, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='missing: backbone.layer3(.|\n)*not '
                       'in the model: backbone.layer4'):
        train(fpq_config(fpq__teacher=str(tmp_path / 'other.pth')))
    train(fpq_config(folder='student'))
    with pytest.raises(ValueError, match='was trained with FPQ: its weights'):
        train(fpq_config(fpq__teacher=str(tmp_path / 'student/epoch_1.pth')))


def test_code_in_a_teacher_file_is_not_run(fpq_config, tmp_path):

    class Evil:

        def __reduce__(self):
            return Path.touch, (tmp_path / 'ran', )

    torch.save(dict(state_dict=Evil()), tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match='can be read safely'):
        train(fpq_config(fpq__teacher=str(tmp_path / 'evil.pth')))
    assert not (tmp_path / 'ran').exists()


def test_testing_a_full_precision_checkpoint(fpq_config, fp):
    with pytest.raises(ValueError, match='is of a full-precision model: it '
                       'has no scales. Test a checkpoint with the config'):
        Runner.from_cfg(fpq_config()).test()


def test_a_runner_without_a_config_says_so(fpq_config):
    cfg = fpq_config()
    runner = Runner.from_cfg(cfg)
    runner.cfg.pop('optim_wrapper')
    with pytest.raises(ValueError, match='build it with Runner.from_cfg'):
        runner.train()


def test_a_loss_that_is_not_finite_stops_with_the_layer(fpq_config):
    """An absurd learning rate; the checkpoint of epoch 1 stays loadable."""
    cfg = fpq_config(**{'train_cfg.max_epochs': 3})
    runner = Runner.from_cfg(cfg)

    class Break(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 20:
                with torch.no_grad():
                    runner.model.backbone.layer2[0].conv1.weight[0] = torch.nan

    runner.register_hook(Break())
    with pytest.raises(FloatingPointError,
                       match='backbone.layer2.0.conv1.weight is not finite'):
        runner.train()
    assert runner.iter == 20
    files = sorted(p.name for p in Path(cfg.work_dir).glob('epoch_*'))
    assert files == ['epoch_1.pth']
    state = load_file(f'{cfg.work_dir}/{files[0]}')
    assert all(torch.isfinite(v).all() for v in state['state_dict'].values())


def test_an_activation_that_is_not_finite_names_the_layer(fpq_config):
    runner = Runner.from_cfg(fpq_config())

    class Break(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            runner.model.backbone.layer3[1].bn2.running_var.fill_(-1)
            runner.model.backbone.layer3[1].bn2.eval()

    runner.register_hook(Break())
    with pytest.raises(FloatingPointError,
                       match='output is that of backbone.layer3.1.bn2'):
        runner.train()


def test_a_step_that_ran_away_names_the_layer(fpq_config):
    """Maps whose squares leave float32: each value of them is finite."""
    runner = Runner.from_cfg(fpq_config())

    class Break(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            conv = runner.model.backbone.layer3[1].conv2
            with torch.no_grad():
                for name, parameter in conv.named_parameters():
                    if not name.startswith('input'):
                        parameter.mul_(1e20)

    runner.register_hook(Break())
    with pytest.raises(FloatingPointError,
                       match=r'layer3.1.conv2\S* reach .*e\+.* diverged'):
        runner.train()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_scale_that_is_not_finite_is_never_saved(fpq_config, by_epoch):
    """Nor does it cost the last good checkpoint, the only one kept."""
    cfg = fpq_config(**{'train_cfg.max_epochs': 2,
                        'default_hooks.checkpoint.by_epoch': by_epoch,
                        'default_hooks.checkpoint.interval':
                        1 if by_epoch else 14,
                        'default_hooks.checkpoint.max_keep_ckpts': 1})
    runner = Runner.from_cfg(cfg)

    class Break(Hook):

        priority = 'HIGHEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None,
                             outputs=None):
            if runner.iter == 27:
                with torch.no_grad():
                    runner.model.head.fc.input_quantizer.scale.fill_(
                        torch.nan)

    runner.register_hook(Break())
    with pytest.raises(FloatingPointError,
                       match='not saved: the parameter head.fc.input_quantiz'):
        runner.train()
    kept = find_latest_checkpoint(cfg.work_dir)
    assert Path(kept).name == ('epoch_1.pth' if by_epoch else 'iter_14.pth')
    assert 'state_dict' in load_file(kept)


@pytest.mark.parametrize('by_epoch', [True, False])
def test_steps_that_run_away_are_told_of_once(fpq_config, monkeypatch,
                                              by_epoch):
    runner = Runner.from_cfg(fpq_config(**{
        'train_cfg.max_epochs': 3,
        'default_hooks.checkpoint.by_epoch': by_epoch,
        'default_hooks.checkpoint.interval': 1 if by_epoch else 21}))
    told = []
    monkeypatch.setattr(runner.logger, 'warning',
                        lambda text: told.append((runner.iter, text)))

    class RunAway(Hook):

        priority = 'HIGHEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None,
                             outputs=None):
            if runner.iter == 20:  # in epoch 2
                with torch.no_grad():
                    runner.model.backbone.layer2[
                        0].conv1.weight_quantizer.scale[0] *= -1e5

    runner.register_hook(RunAway())
    runner.train()
    (when, text), = [each for each in told if 'have grown more' in each[1]]
    assert when == (2 * len(runner.train_dataloader) if by_epoch else 20)
    assert re.search(r'of backbone.layer2.0.conv1.weight_quantizer \(0\.\d+, '
                     r'now \d\.?\d*e\+0[34]\) have', text)


@pytest.mark.parametrize(('content', 'message'), [
    (b'no pickle', 'load_from: .* is not a checkpoint'),
    (None, 'load_from: .* holds a list'),
])
def test_a_load_from_that_is_no_checkpoint(fpq_config, tmp_path, content,
                                           message):
    path = tmp_path / 'weights.pth'
    if content is None:
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        train(fpq_config(load_from=str(path)))


def test_load_from_of_another_model_with_a_good_teacher(fpq_config, fp,
                                                        tmp_path):
    state = load_file(str(fp))['state_dict']
    other = {k.replace('layer3', 'layer4'): v for k, v in state.items()}
    torch.save(other, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='load_from: .* does not fit'):
        train(fpq_config(load_from=str(tmp_path / 'other.pth'),
                         fpq__teacher=str(fp)))


def test_a_model_that_does_not_train_in_loss_mode(fpq_config):
    runner = Runner.from_cfg(fpq_config())
    model = runner.model

    def train_step(data, optim_wrapper):
        data = model.data_preprocessor(data, True)
        out = model(data['inputs'], mode='tensor')
        optim_wrapper.update_params(out.square().mean())
        return dict(loss=out.mean().detach())

    model.train_step = train_step
    with pytest.raises(RuntimeError, match='distilled nothing(.|\n)*train_st'):
        runner.train()


def test_a_fragment_without_its_hook_is_refused(digits, tmp_path):
    path = tmp_path / 'mine.py'
    bases = [str(CONFIGS / '_base_' / name) for name in (
        'fashion_mnist.py', 'resnet_fashion_mnist.py', 'fashion_mnist_6e.py',
        'fpq_w4a4.py')]

    def runner_of(lines):
        path.write_text(f'_base_ = {bases}\n{lines}\n')
        return Runner.from_cfg(config(str(path), tmp_path / 'run'))

    for lines in ('', "fpq = dict(type='fpq_plugin.FPQHook')"):
        for run in ('train', 'val', 'test'):
            with pytest.raises(ValueError, match='default_hooks.fpq: missing'):
                getattr(runner_of(lines), run)()
    off = '_base_.fpq.update(weight=None, activation=None)\n'
    for lines in (off + 'default_hooks = dict(fpq=_base_.fpq)',
                  off + 'default_hooks = dict(mine=_base_.fpq)',
                  off + 'custom_hooks = [_base_.fpq]', 'fpq = None',
                  "fpq = dict(_delete_=True, type='MyOwn')",
                  'fpq = dict(_delete_=True, type=5)'):
        runner_of(lines).val()
    runner = runner_of('')
    runner.register_hook(FPQHook(weight=None, activation=None))
    runner.val()


def test_a_top_level_fpq_that_is_not_read_is_refused(fpq_config, tmp_path):
    """The file's own `fpq = ...` does not reach `_base_.fpq`."""
    path = tmp_path / 'mine.py'
    base = CONFIGS / 'fashion_mnist/resnet_fp.py'
    path.write_text(
        f"_base_ = ['{base.with_name('resnet_fpq_w4a4.py')}']\n"
        'fpq = dict(perturbation=dict(p=0.7))\n')
    bare = fpq_config(str(path), 'bare')
    bare.default_hooks.fpq = dict(type='FPQHook')
    for cfg in (fpq_config(str(path)), bare):
        with pytest.raises(ValueError, match='fpq.perturbation.*0.7.* is not '
                           'read.*default_hooks.fpq.perturbation'):
            Runner.from_cfg(cfg).train()
        assert not list(Path(cfg.work_dir).glob('epoch_*'))


def test_the_shipped_configs_are_read(fpq_config):
    for name in ('resnet_lsq_w4a4', 'resnet_fpq_w2a2', 'vit_fpq_w4a4'):
        cfg = fpq_config(f'fashion_mnist/{name}.py')
        refuse_unread(cfg, 'default_hooks.fpq', {
            key: value for key, value in cfg.default_hooks.fpq.items()
            if key != 'type'})
