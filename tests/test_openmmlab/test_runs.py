"""What does not go with FPQ is refused; what it attaches is let go of."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import MMSeparateDistributedDataParallel
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from runs import scalars_of, train
from torch import nn
from toy_runs import At, ToyNet, on_gloo, on_ranks, toy_config

from fpq_plugin import FPQHook
from fpq_plugin.layers import quantized_layers
from fpq_plugin.openmmlab.runs import refuse_unfit_training


class ConvNet(ToyNet):

    def __init__(self):
        super().__init__()
        del self.a, self.b
        self.backbone = nn.Sequential(
            nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU())

    def logits(self, x):
        return self.c(self.backbone(x[:, None]).mean(-1))


def kept(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_efficient_conv_bn_eval(tmp_path):
    cfg = toy_config(tmp_path, ConvNet, efficient_conv_bn_eval=['backbone'])
    runner = Runner.from_cfg(cfg)
    before = kept(runner.model)
    with pytest.raises(ValueError, match='efficient_conv_bn_eval: MMEngine'):
        runner.train()
    assert not quantized_layers(runner.model)
    assert isinstance(runner.optim_wrapper, dict)
    for key, value in runner.model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize('verb', ['train', 'val', 'test'])
def test_another_kind_of_runner(tmp_path, verb):
    cfg = toy_config(
        tmp_path, strategy=dict(type='SingleDeviceStrategy'),
        runner_type='FlexibleRunner', env_cfg=dict(cudnn_benchmark=False))
    if verb != 'train':
        for key in list(cfg):
            if key.startswith(('train', 'optim')):
                cfg.pop(key)
        cfg[f'{verb}_dataloader'] = toy_config(tmp_path).train_dataloader
        cfg[f'{verb}_cfg'] = dict()
        cfg[f'{verb}_evaluator'] = dict(type='DumpResults',
                                        out_file_path=f'{tmp_path}/o.pkl')
    runner = RUNNERS.build(cfg)  # as mmpretrain's tools do
    assert type(runner) is FlexibleRunner
    with pytest.raises(TypeError, match='FlexibleRunner builds its model'):
        getattr(runner, verb)()
    # It has not even built the model.
    assert isinstance(runner.model, dict) or not quantized_layers(
        runner.model)


def test_another_kind_of_runner_in_full_precision(tmp_path):
    cfg = toy_config(
        tmp_path, strategy=dict(type='SingleDeviceStrategy'),
        fpq=dict(weight=None, activation=None),
        env_cfg=dict(cudnn_benchmark=False))
    runner = FlexibleRunner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 5


def wrapped_apart(folder, kind):
    cfg = toy_config(folder, **on_gloo())
    cfg.model_wrapper_cfg.type = kind
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match=f'model_wrapper_cfg: {kind}'):
        runner.train()
    assert not quantized_layers(runner.model)


def test_a_wrapper_around_each_part(tmp_path):
    on_ranks(wrapped_apart, tmp_path,
             MMSeparateDistributedDataParallel.__name__)


def test_a_wrapper_that_shards(tmp_path):
    class FullyShardedDataParallel(nn.DataParallel):
        pass

    runner = Runner.from_cfg(toy_config(tmp_path))
    runner.model = FullyShardedDataParallel(runner.model)
    with pytest.raises(ValueError, match='FullyShardedDataParallel shards'):
        refuse_unfit_training(runner)


def saved_in_parts(folder):
    cfg = toy_config(folder, **on_gloo(), optim_wrapper=dict(
        optimizer=dict(type='ZeroRedundancyOptimizer', lr=0.1,
                       optimizer_type='SGD')))
    with pytest.raises(ValueError, match='checkpoint.save_optimizer=False'):
        Runner.from_cfg(cfg).train()


def test_a_state_that_mmengine_would_wait_for(tmp_path):
    on_ranks(saved_in_parts, tmp_path)


def test_an_optimizer_without_a_config_changes_nothing(tmp_path):
    runner = Runner.from_cfg(toy_config(tmp_path))
    runner.cfg.pop('optim_wrapper')
    with pytest.raises(ValueError, match='build it with Runner.from_cfg'):
        runner.train()
    assert not quantized_layers(runner.model)


def test_activation_checkpointing(tmp_path):
    """The same weights with and without, distillation included."""
    ends = []
    for name, more in (('plain', {}),
                       ('kept', dict(activation_checkpointing=['b']))):
        runner = Runner.from_cfg(toy_config(tmp_path, name=name, **more))
        runner.train()
        ends.append(runner.model.state_dict())
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, msg=key)


class Stop(Hook):
    """Raises ``error`` in the third iteration, once."""

    def __init__(self, error):
        self.error = error

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3 and self.error is not None:
            error, self.error = self.error, None
            raise error


def forward_hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, FPQHook))


def test_one_ordered_pair_around_the_forward(fpq_config):
    runner = Runner.from_cfg(fpq_config())
    seen = []

    class Look(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            model = runner.model
            seen.append((len(model._forward_hooks),
                         len(model._forward_pre_hooks)))

    runner.register_hook(Look())
    runner.train()
    # Before: the session, and SFP's clock, which every converted model has.
    assert set(seen) == {(1, 2)}


@pytest.mark.parametrize('error', [RuntimeError('lost'), KeyboardInterrupt()])
def test_a_training_that_broke_off_leaves_nothing(fpq_config, error):
    cfg = fpq_config()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Stop(error))
    with pytest.raises(type(error)):
        runner.train()
    assert hook_of(runner).session is None
    assert forward_hooks(runner.model) == 0
    assert len(runner.model._forward_pre_hooks) == 1


def test_training_again_after_an_interrupt_is_a_fresh_run(fpq_config):
    """In the same process, by a new Runner on the same config."""
    ends = []
    for name, error in (('straight', None), ('again', KeyboardInterrupt())):
        cfg = fpq_config(folder=name, fpq__perturbation=dict(p=0.5))
        if error is not None:
            broken = Runner.from_cfg(cfg)
            broken.register_hook(Stop(error))
            with pytest.raises(KeyboardInterrupt):
                broken.train()
            cfg.experiment_name += '_again'
        ends.append(train(cfg).model.state_dict())
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


def test_the_same_runner_trains_again(fpq_config):
    runner = Runner.from_cfg(fpq_config())
    runner.register_hook(Stop(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner.train()
    assert runner.epoch == 1
    assert forward_hooks(runner.model) == 0


def test_closing_twice_does_nothing(fpq_config):
    runner = train(fpq_config())
    hook_of(runner).close()
    assert hook_of(runner).session is None


class Breakable(ToyNet):
    """Ctrl-C in a forward of a mode, once."""

    stop_at = None

    def forward(self, x, y=None, mode='tensor'):
        if self.stop_at == mode:
            type(self).stop_at = None
            raise KeyboardInterrupt
        return super().forward(x, y, mode)


def stop_in(point):
    """Hooks that end a run at a point, once."""
    left = [RuntimeError('lost')]

    def stop(runner):
        if left:
            raise left.pop()

    return At(**{point: stop})


def with_val(cfg):
    cfg.val_dataloader = dict(
        cfg.train_dataloader, sampler=dict(type='DefaultSampler',
                                           shuffle=False))
    cfg.val_cfg = dict()
    cfg.val_evaluator = dict(type='DumpResults',
                             out_file_path=f'{cfg.work_dir}/out.pkl')
    return cfg


POINTS = ['tensor', 'loss', 'predict', 'before_run', 'before_train',
          'before_train_epoch', 'after_train_iter', 'before_val_iter',
          'before_save_checkpoint', 'after_train']


@pytest.mark.parametrize('point', POINTS)
def test_a_run_that_stopped_anywhere_trains_again(
        tmp_path, monkeypatch, point):
    """By the same Runner, and by another one: as if it had not been."""
    straight = Runner.from_cfg(with_val(toy_config(
        tmp_path, Breakable, name='straight')))
    straight.train()
    broken = Runner.from_cfg(with_val(toy_config(
        tmp_path, Breakable, name='broken')))
    if point in ('tensor', 'loss', 'predict'):
        monkeypatch.setattr(Breakable, 'stop_at', point)
    else:
        broken.register_hook(stop_in(point))
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        broken.train()
    assert hook_of(broken).session is None
    assert forward_hooks(broken.model) == 0
    other = Runner.from_cfg(with_val(toy_config(
        tmp_path, Breakable, name='other')))
    other.train()
    for key, value in straight.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[key], value), key
    broken.train()
    assert broken.epoch == 1
    assert forward_hooks(broken.model) == 0


@pytest.mark.parametrize('named', [False, True])
def test_the_teacher_is_the_same_when_a_runner_trains_again(tmp_path, named):
    """And the student goes on from where it was."""
    cfg = toy_config(tmp_path)
    if named:
        cfg.default_hooks.fpq.teacher, cfg.load_from = cfg.load_from, None
    runner = Runner.from_cfg(cfg)
    seen = []

    def look(runner):
        teacher = hook_of(runner)._teacher.model.state_dict()
        seen.append(({k: v.clone() for k, v in teacher.items()},
                     runner.model.a.weight.detach().clone()))

    runner.register_hook(At(before_train=look))
    runner.register_hook(stop_in('after_train_epoch'))
    with pytest.raises(RuntimeError, match='lost'):
        runner.train()
    trained = runner.model.a.weight.detach().clone()
    runner.train()
    (teacher, start), (again, later) = seen
    assert all(torch.equal(again[key], teacher[key]) for key in teacher)
    assert torch.equal(later, trained)
    assert not torch.equal(later, start)


def test_a_validation_that_a_hook_starts_does_not_end_the_training(tmp_path):
    runner = Runner.from_cfg(with_val(toy_config(
        tmp_path, train_cfg=dict(by_epoch=True, max_epochs=2))))
    compared = []
    runner.register_hook(At(
        after_train_epoch=lambda r: r.val(),
        after_train_iter=lambda r: compared.append(
            hook_of(r).session is not None)))
    runner.train()
    assert compared == [True] * 10


def test_val_after_train_makes_no_teacher(tmp_path):
    runner = Runner.from_cfg(with_val(toy_config(tmp_path)))
    runner.train()
    runner.val()
    assert hook_of(runner)._teacher.model is None


def test_a_hook_object_in_two_runners(tmp_path):
    """Each has the teacher of its own weights."""
    hook = FPQHook(calibration=dict(num_images=16))
    teachers = []
    for name, seed in (('one', 0), ('two', 1)):
        cfg = toy_config(tmp_path, name=name)
        cfg.default_hooks.pop('fpq')
        torch.manual_seed(seed)
        start = ToyNet().state_dict()
        cfg.load_from = str(tmp_path / f'{name}.pth')
        torch.save(dict(state_dict=start), cfg.load_from)
        runner = Runner.from_cfg(cfg)
        runner.register_hook(hook)
        runner.register_hook(At(before_train=lambda r: teachers.append(
            hook._teacher.model.a.weight.clone())))
        runner.train()
        assert torch.equal(teachers[-1], start['a.weight'])


def test_activation_checkpointing_is_put_on_once(tmp_path):
    """A second training wraps no forward twice, and no student's copy."""
    runner = Runner.from_cfg(toy_config(
        tmp_path, activation_checkpointing=['b']))
    calls = []

    class Counted(type(runner.model.b)):

        def forward(self, x):
            calls.append(self is runner.model.b)
            return super().forward(x)

    runner.model.b.__class__ = Counted
    runner.register_hook(stop_in('after_train_epoch'))
    with pytest.raises(RuntimeError, match='lost'):
        runner.train()
    calls.clear()
    runner.train_loop._epoch = runner.train_loop._iter = 0
    runner.train()
    # Of five iterations: forward and recomputation, and the teacher's.
    assert (calls.count(True), calls.count(False)) == (10, 5)


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


def test_the_layers_are_distilled_first_and_the_logits_later(fpq_config,
                                                             tmp_path):
    cfg = fpq_config(**{'train_cfg.max_epochs': 2,
                        'default_hooks.logger.interval': 1})
    Runner.from_cfg(cfg).train()
    csd, kd = (scalars_of(tmp_path / 'run', f'loss_{name}')
               for name in ('csd', 'kd'))
    iterations = len(csd)
    assert iterations == 28
    assert kd[0] == 0
    assert kd[-1] > 0
    assert csd[-1] < csd[0] / 8  # a mean of ten iterations
    assert 0.2 * csd[0] < csd[iterations // 2] < csd[0]
