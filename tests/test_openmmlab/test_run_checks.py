"""What does not go with FPQ is refused by name, and nothing is changed."""

import pytest
import torch
from mmengine.model import MMSeparateDistributedDataParallel
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from toy_runs import ToyNet, on_gloo, on_ranks, toy_config

from fpq_plugin.layers import quantized_layers
from fpq_plugin.openmmlab.run_checks import refuse_unfit_training


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
