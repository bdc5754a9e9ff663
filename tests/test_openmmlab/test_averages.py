"""Averages of a model, or of a part of it, beside FPQ."""

import copy

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.optim.swa_utils import AveragedModel
from toy_runs import ToyNet, register, toy_config, toy_train

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
    (Reference, {}, 'reference.a.weight_quantizer.scale'),
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
