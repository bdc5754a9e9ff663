"""Whole runs of the rivals: trained, saved, resumed and tested by a Runner."""

import pytest
import torch
from mmengine import Config
from runs import CONFIGS, options, scalars_of, train, weights


@pytest.fixture
def method_config(digits, fp, tmp_path):
    """Makes the config of a method's fragment as a digits run."""

    def make(name, folder, lines='', **more):
        path = tmp_path / f'{folder}.py'
        bases = [str(CONFIGS / '_base_' / base)
                 for base in ('fashion_mnist.py', 'fashion_mnist_6e.py',
                              'resnet_fashion_mnist.py',
                              f'methods/{name}.py')]
        path.write_text(f'_base_ = {bases}\n'
                        'default_hooks = dict(fpq=_base_.fpq)\n' + lines)
        cfg = Config.fromfile(str(path))
        cfg.merge_from_dict(
            options(**{
                'load_from': str(fp),
                'optim_wrapper.optimizer.lr': 0.01,
                'param_scheduler.T_max': 2,
                'train_cfg.max_epochs': 2,
                'default_hooks.fpq.weight.bits': 2,
                **more
            }))
        cfg.work_dir = str(tmp_path / folder)
        cfg.experiment_name = f'{tmp_path.name}_{folder}'
        return cfg

    return make


@pytest.mark.parametrize('name', ['lsq_plus', 'pact', 'torch_ao'])
def test_a_resumed_run_ends_as_the_straight_one(method_config, tmp_path,
                                                name):
    runner = train(method_config(name, 'straight'))
    cfg = method_config(name, 'resumed')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'straight/epoch_1.pth')
    train(cfg)
    straight = weights(tmp_path / 'straight/epoch_2.pth')
    resumed = weights(tmp_path / 'resumed/epoch_2.pth')
    assert straight.keys() == resumed.keys()
    for key, value in straight.items():
        assert torch.equal(resumed[key], value), key
    accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
    assert accuracy > 50


def test_each_distillation_is_logged_by_its_name(method_config, tmp_path):
    train(method_config('kd', 'kd'))
    train(method_config('fpq_kd', 'both'))
    assert scalars_of(tmp_path / 'kd', 'loss_kd')
    assert not scalars_of(tmp_path / 'kd', 'loss_csd')
    assert scalars_of(tmp_path / 'both', 'loss_kd')
    assert scalars_of(tmp_path / 'both', 'loss_csd')


def test_sam_trains(method_config):
    pytest.importorskip('pytorch_optimizer')
    runner = train(method_config(
        'lsq_sam', 'sam', 'optim_wrapper = _base_.sam\n'))
    assert type(runner.optim_wrapper).__name__ == 'SAMOptimWrapper'
    assert {g['rho'] for g in runner.optim_wrapper.param_groups} == {0.05}
    accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
    assert accuracy > 50


def test_a_wrong_loss_in_the_list_is_named(method_config):
    cfg = method_config('fpq_kd', 'wrong')
    cfg.default_hooks.fpq.distillation[1].type = 'LogitKDD'
    with pytest.raises(ValueError, match=r'distillation\.type.*LogitKDD'):
        train(cfg)
