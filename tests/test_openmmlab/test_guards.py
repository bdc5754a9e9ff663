"""Averages of a model are refused; what is not finite names the layer."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel
from toy_runs import ToyNet, register, toy_config, toy_train

from fpq_plugin._compat.files import load_file
from fpq_plugin.layers import quantized_layers


class Pair(ToyNet):
    """Two networks of equal build, the second one frozen."""

    def __init__(self, twin='teacher'):
        super().__init__()
        del self.a, self.b, self.c
        self.student = ToyNet()
        setattr(self, twin,
                copy.deepcopy(self.student).requires_grad_(False))
        self.twin = twin

    def logits(self, x):
        with torch.no_grad():
            target = getattr(self, self.twin)(x)
        return self.student(x) + 0 * target


class SemiBaseDetector(Pair):
    """As mmdet calls it."""


class SoftTeacher(SemiBaseDetector):
    pass


class Reference(Pair):

    def __init__(self):
        super().__init__('reference')


class WithSWA(ToyNet):

    def __init__(self):
        super().__init__()
        self.past = AveragedModel(nn.Linear(4, 8))


class Average(Hook):
    """Averages a part of the model into another, name by name."""

    def after_train_iter(self, runner, *args, **kwargs):
        model = runner.model
        new = dict(model.student.named_parameters())
        twin = getattr(model, model.twin)
        for name, old in twin.named_parameters():
            old.data.mul_(0.5).add_(new[name].data, alpha=0.5)


class MeanTeacherHook(Average):
    """As mmdet calls it."""


class MyMeanTeacherHook(MeanTeacherHook):
    pass


def refused(cfg, message):
    runner = Runner.from_cfg(cfg)
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert not quantized_layers(runner.model)
    after = runner.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.parametrize(('model', 'message'), [
    (SoftTeacher, "SoftTeacher: its 'teacher' is a moving average"),
    (WithSWA, "WithSWA: its 'past' is a moving average"),
    (Pair, "would quantize 'teacher', a frozen part that is built as"),
])
def test_models_that_average_a_part(tmp_path, model, message):
    refused(toy_config(tmp_path, model), message)


@pytest.mark.parametrize('hook', [MeanTeacherHook, MyMeanTeacherHook])
def test_hooks_that_average_a_part(tmp_path, hook):
    refused(toy_config(tmp_path, Reference,
                       custom_hooks=[dict(type=register(HOOKS, hook))]),
            f'cannot train beside {hook.__name__}: it averages')


@pytest.mark.parametrize(('model', 'fpq', 'moved'), [
    (Reference, {}, 'reference.a.weight_quantizer.log_scale'),
    (Pair, dict(skip=['teacher']), 'teacher.a.weight')])
def test_an_average_that_no_name_tells_of_is_noticed(
        tmp_path, model, fpq, moved, caplog):
    custom_hooks = [dict(type=register(HOOKS, Average))]
    runner = Runner.from_cfg(toy_config(
        tmp_path, model, fpq, custom_hooks=custom_hooks))
    told = []
    runner.logger.warning = told.append
    runner.train()
    assert [moved in text for text in told if 'is frozen, and' in text] == [
        True]


@pytest.mark.parametrize(('model', 'fpq'), [
    (Reference, {}), (Pair, dict(skip=['teacher']))])
def test_a_frozen_copy_is_no_average(tmp_path, model, fpq):
    runner = Runner.from_cfg(toy_config(tmp_path, model, fpq))
    told = []
    runner.logger.warning = told.append
    runner.train()
    assert not any('is frozen, and' in text for text in told)
    assert len(quantized_layers(runner.model)) == 6 - 3 * bool(fpq)


@pytest.mark.parametrize('kind', [
    dict(type='ExponentialMovingAverage'),
    dict(type='ExponentialMovingAverage', update_buffers=True),
    dict(type='MomentumAnnealingEMA', gamma=10),
    dict(type='StochasticWeightAverage'),
], ids=str)
def test_averages_of_the_whole_model(tmp_path, kind):
    kind = dict(kind)
    ema = dict(type='EMAHook', ema_type=kind.pop('type'), **kind)
    runner = toy_train(tmp_path, custom_hooks=[ema])
    hook = next(h for h in runner.hooks if isinstance(h, EMAHook))
    average = hook.ema_model.module
    x = torch.randn(40, 4)
    own = runner.model.eval()(x)
    assert len(quantized_layers(average)) == 3
    assert 0 < (average.eval()(x) - own).abs().max() < own.abs().max()
    for key, value in average.state_dict().items():
        if value.dtype in (torch.int32, torch.uint8):
            assert torch.equal(value, runner.model.state_dict()[key]), key


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
                conv.weight.mul_(1e20)
                conv.weight_quantizer.log_scale.add_(math.log(1e20))

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
                    runner.model.head.fc.input_quantizer.log_scale.fill_(
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
                        0].conv1.weight_quantizer.log_scale[0] += 12

    runner.register_hook(RunAway())
    runner.train()
    (when, text), = [each for each in told if 'have grown more' in each[1]]
    assert when == (2 * len(runner.train_dataloader) if by_epoch else 20)
    assert re.search(r'of backbone.layer2.0.conv1.weight_quantizer \(0\.\d+, '
                     r'now \d\.?\d*e\+0[34]\) have', text)
