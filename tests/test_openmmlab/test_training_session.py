"""What training attaches is let go of, however the training ends."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from runs import train

from fpq_plugin import FPQHook


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
