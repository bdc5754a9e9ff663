"""When a run's batch norms are set anew, on which images, on all ranks."""

import copy

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.registry import DATA_SAMPLERS, METRICS
from mmengine.runner import Runner
from runs import weights
from torch import nn
from torch.utils.data import Sampler
from toy_runs import (
    At,
    Numbers,
    ToyNet,
    on_gloo,
    on_ranks,
    register,
    toy_config,
    toy_train,
)

from fpq_plugin.openmmlab import batch_norms


class NormedNet(ToyNet):
    """With a batch norm, and one that nothing calls."""

    def __init__(self):
        super().__init__()
        self.norm, self.spare = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def logits(self, x):
        return self.c(self.norm(self.b(self.a(x).relu())).relu())


@METRICS.register_module(force=True)
class Nothing(BaseMetric):
    """A metric without a value of interest."""

    def process(self, data_batch, data_samples):
        self.results += [1 for _ in data_samples]

    def compute_metrics(self, results):
        return dict(number=len(results))


def validated(**train_cfg):
    """Of a run that validates: its options."""
    return dict(
        train_cfg=train_cfg,
        val_cfg=dict(),
        val_evaluator=dict(type='Nothing'),
        val_dataloader=dict(
            dataset=dict(type='Numbers'), batch_size=20,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate')))


@pytest.fixture
def times(monkeypatch):
    """The iterations after which norms were set anew, and their images."""
    found = []
    own = batch_norms.reestimate_batch_norms

    def watched(model, batches, forward):
        batches = list(batches)
        found.append((runner_of[0].iter, sum(len(x) for x, _ in batches)))
        return own(model, batches, forward)

    runner_of = []
    monkeypatch.setattr(batch_norms, 'reestimate_batch_norms', watched)

    def train(cfg):
        found.clear()
        runner_of[:] = [Runner.from_cfg(cfg)]
        runner_of[0].train()
        return found

    return train


BY_EPOCH = dict(by_epoch=True, max_epochs=5, val_interval=2)
BY_ITERATION = dict(by_epoch=False, max_iters=11, val_interval=4)


@pytest.mark.parametrize(('how', 'checkpoint', 'wanted'), [
    # An epoch is of five iterations.
    (validated(**BY_EPOCH), dict(interval=100), [10, 20, 25]),
    (validated(**BY_EPOCH), dict(interval=100, save_last=False),
     [10, 20, 25]),
    (validated(**BY_EPOCH), dict(interval=3), [10, 15, 20, 25]),
    (validated(**BY_ITERATION), dict(interval=3, by_epoch=False),
     [2, 4, 5, 8, 8, 10]),
    (dict(train_cfg=BY_EPOCH), dict(interval=100, save_last=False), [25]),
])
def test_before_each_validation_and_checkpoint_once(
        times, tmp_path, how, checkpoint, wanted):
    cfg = toy_config(tmp_path, NormedNet, **how)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', **checkpoint)
    assert times(cfg) == [(n, 40) for n in wanted]


@pytest.mark.parametrize(('fpq', 'images'), [
    (dict(batch_norms=dict(num_images=17)), 16),  # 8, 8, and not one
    (dict(batch_norms=dict(num_images=18)), 18),
    (dict(batch_norms=None), None), (dict(preset='paper'), None)])
def test_on_as_many_images_as_are_asked_for(times, tmp_path, fpq, images):
    found = times(toy_config(tmp_path, NormedNet, fpq))
    assert found == ([] if images is None else [(5, images)])


@pytest.mark.parametrize(('model', 'fpq'), [
    (ToyNet, {}), (NormedNet, dict(weight=None, activation=None))])
def test_without_them_no_image_is_drawn(model, fpq, tmp_path, monkeypatch):
    def draw(*args, **more):
        raise AssertionError('drawn')
        yield

    monkeypatch.setattr(batch_norms, 'calibration_batches', draw)
    toy_train(tmp_path, model, fpq)


class Fours(Sampler):
    """Batches of four, without saying so."""

    def __init__(self, sampler, batch_size=None, drop_last=False):
        self.sampler = sampler

    def __iter__(self):
        order = list(self.sampler)
        return iter([order[n:n + 4] for n in range(0, len(order), 4)])

    def __len__(self):
        return 10


def test_batches_of_a_size_that_is_not_told_set_none(times, tmp_path):
    """By one image alone the variance would be another, or none."""
    register(DATA_SAMPLERS, Fours)
    cfg = toy_config(tmp_path, NormedNet)
    cfg.train_dataloader.batch_sampler = dict(type='Fours')
    del cfg.train_dataloader['batch_size']
    assert times(cfg) == []
    assert (tmp_path / 'run/epoch_1.pth').exists()


def assert_statistics(state, model):
    """That the state's norm has those of all inputs, by the formula."""
    model = copy.deepcopy(model).eval()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    seen = []
    model.norm.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach()))
    model.norm.train()
    numbers = Numbers()
    for part in order.split(8):
        model(torch.stack([numbers[i][0] for i in part]))
    for key, wanted in (
            ('norm.running_mean', torch.stack([x.mean(0) for x in seen])),
            ('norm.running_var', torch.stack([x.var(0) for x in seen]))):
        torch.testing.assert_close(state[key], wanted.mean(0))


@pytest.mark.parametrize('buffers', [False, True])
def test_averaged_weights_have_their_own(tmp_path, buffers):
    """What is validated, and what is saved."""
    seen = []

    def look(runner):  # after EMAHook has put its weights into the model
        seen.append(copy.deepcopy(runner.model.state_dict()))

    cfg = toy_config(
        tmp_path, NormedNet, custom_hooks=[
            dict(type='EMAHook', momentum=0.2, update_buffers=buffers)],
        **validated(by_epoch=True, max_epochs=2))
    runner = Runner.from_cfg(cfg)
    runner.register_hook(At(before_val_epoch=look))
    runner.train()
    hook, = (h for h in runner.hooks if isinstance(h, EMAHook))
    averaged = hook.ema_model.module
    assert not torch.equal(averaged.a.weight, runner.model.a.weight)
    saved = weights(tmp_path / 'run/epoch_2.pth')
    for state in (averaged.state_dict(), seen[-1], saved):
        assert torch.equal(state['a.weight'], averaged.a.weight)
        assert_statistics(state, averaged)


def test_training_is_the_same_and_the_file_has_the_new_ones(tmp_path):
    """The clean statistics are those of the whole set here."""
    runs = {}
    for name, fpq in (('with', {}), ('without', dict(batch_norms=None))):
        runner = toy_train(
            tmp_path, NormedNet, fpq, name,
            train_cfg=dict(by_epoch=True, max_epochs=3))
        runs[name] = weights(tmp_path / name / 'epoch_3.pth')
        for key, value in runner.model.state_dict().items():
            assert torch.equal(value, runs[name][key])
    changed = {key for key, value in runs['with'].items()
               if not torch.equal(value, runs['without'][key])}
    assert changed == {'norm.running_mean', 'norm.running_var'}
    assert_statistics(runs['with'], runner.model)


def test_an_interrupted_run_ends_as_a_straight_one(tmp_path):
    def run(name, **more):
        return toy_config(tmp_path, NormedNet, name=name, **more)

    three = dict(train_cfg=dict(by_epoch=True, max_epochs=3))
    Runner.from_cfg(run('straight', **three)).train()

    def stop(runner):
        if runner.epoch == 1:
            raise KeyboardInterrupt

    cut = Runner.from_cfg(run('cut', **three))
    cut.register_hook(At(before_train_epoch=stop))
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    Runner.from_cfg(run('cut', resume=True, **three)).train()
    one, two = (weights(tmp_path / name / 'epoch_3.pth')
                for name in ('straight', 'cut'))
    for key, value in one.items():
        assert torch.equal(value, two[key])


def on_each_rank(folder):
    runner = toy_train(folder, NormedNet, **on_gloo(
        find_unused_parameters=True))
    return {key: value.clone() for key, value in
            runner.model.module.state_dict().items()}


def test_ranks_are_the_same_afterwards(tmp_path):
    toy_config(tmp_path, NormedNet)  # writes the checkpoint
    one, two = on_ranks(on_each_rank, tmp_path)
    assert not torch.equal(one['norm.running_mean'], torch.zeros(8))
    for key, value in one.items():
        assert torch.equal(value, two[key])
