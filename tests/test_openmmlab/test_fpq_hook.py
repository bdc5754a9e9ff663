"""FPQHook in a Runner: the life cycle, point by point of the design."""

import copy
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from mmpretrain.models import LinearClsHead
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from runs import log_of, scalars_of, train, weights
from toy_runs import ToyNet, toy_train

from fpq_plugin import CSDLoss, QuantizedLayer
from fpq_plugin._compat.files import load_file
from fpq_plugin.convert import noise_clock
from fpq_plugin.layers import quantized_layers
from fpq_plugin.param_groups import quantizer_parameters


def test_a_run_trains_logs_and_leaves_nothing_behind(fpq_config, fp):
    cfg = fpq_config()
    runner = train(cfg)
    log = log_of(cfg_dir(cfg))
    assert 'FPQ 0.1.0 quantizes 17 of 17 layers' in log
    assert 'backbone.layer1.0.conv1' in log
    assert 'first layer' in log
    assert 'FPQ calibrates on 100 training images' in log
    assert 'the layer farthest from the teacher is' in log
    csd = scalars_of(cfg_dir(cfg), 'loss_csd')
    assert csd
    assert all(0 < value < 100 for value in csd)
    state = weights(cfg_dir(cfg) / 'epoch_1.pth')
    plain = weights(fp)
    extra = set(state) - set(plain)
    assert set(plain) <= set(state)
    assert all('_quantizer.' in key for key in extra)
    flags = [key for key in extra if key.endswith('.initialized')]
    assert len(flags) == 34
    assert all(int(state[key]) for key in flags)
    assert 'do not match exactly' not in log
    # Detached: nothing but SFP's clock hooks the model.
    for module in runner.model.modules():
        assert not module._forward_hooks
    assert len(runner.model._forward_pre_hooks) == 1


def cfg_dir(cfg):
    return Path(cfg.work_dir)


@MODELS.register_module()
class TwiceHead(LinearClsHead):
    """Calls its layer on the features and on their negative."""

    def forward(self, feats):
        features = self.pre_logits(feats)
        return self.fc(features) + self.fc(-features)


@MODELS.register_module()
class TwoNamesHead(LinearClsHead):
    """Has its layer under two names, as RTMDet's head has its convs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.same_fc = self.fc


@OPTIM_WRAPPERS.register_module()
class CPUAutocast(OptimWrapper):
    """mmengine's AmpOptimWrapper without its demand for a GPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast(
                'cpu', torch.bfloat16):
            yield


def test_the_loss_that_is_optimized_holds_the_csd(fpq_config):
    """One step with a huge lambda moves the weights elsewhere."""
    ends = []
    for weight in (1e-3, 10.0):
        cfg = fpq_config(
            folder=f'run{weight}', fpq__perturbation=None,
            **{'default_hooks.fpq.distillation.loss_weight': weight})
        ends.append(train(cfg).model.state_dict())
    key = 'backbone.layer2.0.conv1.weight'
    assert not torch.allclose(ends[0][key], ends[1][key])


@pytest.mark.parametrize('skip', [[], ['head'], ['head.f*']])
def test_the_default_distills_layers_and_logits(fpq_config, skip):
    """Without the layer of the logits, the layers alone."""
    cfg = fpq_config(fpq__distill_skip=skip)
    train(cfg)
    assert scalars_of(cfg_dir(cfg), 'loss_csd')
    assert bool(scalars_of(cfg_dir(cfg), 'loss_kd')) == (not skip)
    assert ('FPQ distills by CSD alone' in log_of(cfg_dir(cfg))) == bool(skip)


def test_baseline_lsq_has_no_teacher(fpq_config):
    cfg = fpq_config('fashion_mnist/resnet_lsq_w4a4.py')
    train(cfg)
    assert not list(cfg_dir(cfg).glob('fpq_teacher*'))
    with pytest.raises(IndexError):
        scalars_of(cfg_dir(cfg), 'loss_csd')[0]


def test_scales_are_once_in_the_optimizer_without_decay(fpq_config):
    cfg = fpq_config(
        fpq__scale_lr_mult=0.5,
        **{
            'auto_scale_lr.enable': True,
            'auto_scale_lr.base_batch_size': 200,
            'optim_wrapper.paramwise_cfg':
            dict(norm_decay_mult=0.0, custom_keys=dict(
                head=dict(lr_mult=0.1)))
        })
    seen = {}

    def look(runner):
        groups = runner.optim_wrapper.optimizer.param_groups
        names = {id(p): n for n, p in runner.model.named_parameters()}
        for group in groups:
            for parameter in group['params']:
                name = names[id(parameter)]
                assert name not in seen
                seen[name] = group['weight_decay'], group['initial_lr']

    runner = Runner.from_cfg(cfg)
    runner.register_hook(_Call(before_train=look))
    runner.train()
    assert set(seen) == {n for n, _ in runner.model.named_parameters()}
    base = 0.01 * 100 / 200
    scales = quantizer_parameters(runner.model)
    assert len(scales) == 34
    for name in scales:
        decay, lr = seen[name]
        assert decay == 0
        mult = 0.1 if name.startswith('head') else 1
        assert lr == pytest.approx(base * 0.5 * mult)
    assert seen['backbone.conv1.weight'] == (5e-4, pytest.approx(base))
    assert seen['backbone.bn1.weight'] == (0, pytest.approx(base))


class _Call:
    """Builds a hook that calls the given functions with the runner."""

    def __new__(cls, **functions):
        from mmengine.hooks import Hook

        hook = type('CallHook', (Hook, ), {})()
        for name, function in functions.items():
            setattr(hook, name,
                    lambda runner, *a, f=function, **k: f(runner))
        return hook


def test_learning_rate_schedule_is_that_of_a_plain_run(fpq_config, digits):
    from runs import config
    cfg = fpq_config(**{
        'param_scheduler': [
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
            dict(type='CosineAnnealingLR', by_epoch=False, begin=6, T_max=8),
        ]
    })
    plain = config('fashion_mnist/resnet_fp.py', cfg_dir(cfg) / 'plain',
                   **{'train_cfg.max_epochs': 1,
                      'optim_wrapper.optimizer.lr': 0.01})
    plain.param_scheduler = copy.deepcopy(cfg.param_scheduler)
    rates = []
    for each in (cfg, plain):
        rates.append([])
        runner = Runner.from_cfg(each)
        runner.register_hook(_Call(after_train_iter=lambda r: rates[-1].append(
            {round(g['lr'], 12) for g in r.optim_wrapper.param_groups})))
        runner.train()
    assert rates[0] == rates[1]
    assert len(rates[0]) == 14


def test_float_only_is_bit_identical_to_no_hook(fpq_config):
    off = fpq_config(fpq__weight=None, fpq__activation=None)
    plain = fpq_config(folder='plain')
    del plain.default_hooks.fpq
    plain.pop('fpq')
    states = [train(cfg).model.state_dict() for cfg in (off, plain)]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert 'FPQ is off' in log_of(cfg_dir(off))


def test_calibration_leaves_the_random_state(fpq_config):
    """Random augmentation draws the same with and without calibration."""
    crop = [dict(type='RandomCrop', crop_size=8, padding=2),
            dict(type='PackInputs')]
    batches = []
    for number in (10, 100):
        cfg = fpq_config(
            folder=f'n{number}',
            fpq__calibration=dict(num_images=number),
            **{'train_dataloader.dataset.pipeline': crop})
        runner = Runner.from_cfg(cfg)
        runner.register_hook(_Call(before_train=lambda r: batches.append(
            next(iter(r.train_dataloader))['inputs'])))
        runner.train()
    assert all(torch.equal(a, b) for a, b in zip(*batches))


def test_same_seed_same_run_and_other_seed_other_noise(fpq_config):
    states = []
    for number, seed in enumerate((0, 0, 1)):
        cfg = fpq_config(folder=f'run{number}', fpq__perturbation=dict(p=1.0))
        cfg.randomness = dict(seed=seed)
        cfg.train_dataloader.sampler.shuffle = False
        states.append(train(cfg).model.state_dict())
    key = 'backbone.layer2.0.conv1.weight'
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


def test_val_and_test_in_the_same_process(fpq_config, digits):
    cfg = fpq_config()
    runner = Runner.from_cfg(cfg)
    runner.train()
    wrapper = runner.optim_wrapper
    in_training = scalars_of(cfg_dir(cfg), 'accuracy/top1')[-1]
    assert runner.val()['accuracy/top1'] == pytest.approx(in_training)
    assert runner.test()['accuracy/top1'] == pytest.approx(in_training)
    assert runner.optim_wrapper is wrapper
    assert len(quantized_layers(runner.model)) == 17
    # A fresh Runner, test only, from the checkpoint.
    fresh = fpq_config(folder='test', **{
        'load_from': str(cfg_dir(cfg) / 'epoch_1.pth')})
    metrics = Runner.from_cfg(fresh).test()
    assert metrics['accuracy/top1'] == pytest.approx(in_training)


def test_val_before_train_in_one_process(fpq_config):
    first = fpq_config()
    train(first)
    cfg = fpq_config(folder='second', **{
        'load_from': str(cfg_dir(first) / 'epoch_1.pth')})
    runner = Runner.from_cfg(cfg)
    runner.val()
    runner.train()
    groups = runner.optim_wrapper.param_groups
    assert len(groups) == 2
    assert groups[1]['weight_decay'] == 0
    assert 'calibrates' not in log_of(cfg_dir(cfg))


@pytest.mark.parametrize('place', ['before', 'after'])
def test_ema_pairs_with_the_right_parameters(fpq_config, place):
    """Every EMA weight is the recursion over the trained weights."""
    ema = dict(type='EMAHook', momentum=0.2)
    if place == 'before':  # registered earlier than fpq, same priority
        cfg = fpq_config()
        hooks = dict(ema=ema)
        hooks.update(cfg.default_hooks)
        cfg.default_hooks = hooks
    else:
        cfg = fpq_config(custom_hooks=[ema])
    history = []
    runner = Runner.from_cfg(cfg)
    runner.register_hook(_Call(after_train_iter=lambda r: history.append(
        {k: v.detach().clone() for k, v in r.model.named_parameters()})))
    runner.train()
    hook = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
    assert isinstance(hook.ema_model, ExponentialMovingAverage)
    averages = dict(hook.ema_model.module.named_parameters())
    assert set(averages) == set(history[0])
    for name, average in averages.items():
        expected = history[0][name].double()
        for state in history[1:]:
            expected = 0.8 * expected + 0.2 * state[name].double()
        torch.testing.assert_close(
            average.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    saved = load_file(f'{cfg.work_dir}/epoch_1.pth')
    key = 'backbone.conv1.weight_quantizer.log_scale'
    assert torch.equal(saved['state_dict'][key], averages[key])
    assert torch.equal(saved['ema_state_dict'][f'module.{key}'],
                       history[-1][key])
    # The EMA weights are what a test sees.
    fresh = fpq_config(folder='test', **{
        'load_from': str(cfg_dir(cfg) / 'epoch_1.pth')})
    metrics = Runner.from_cfg(fresh).test()
    assert metrics['accuracy/top1'] == pytest.approx(
        scalars_of(cfg_dir(cfg), 'accuracy/top1')[-1])


def test_gradient_accumulation_and_iteration_loop(fpq_config):
    cfg = fpq_config(
        **{
            'optim_wrapper.accumulative_counts': 2,
            'default_hooks.checkpoint': dict(
                type='CheckpointHook', interval=6, by_epoch=False),
        })
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=12, val_interval=6)
    cfg.param_scheduler = dict(
        type='PolyLR', by_epoch=False, begin=0, end=12)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.log_processor = dict(by_epoch=False)
    train(cfg)
    state = weights(cfg_dir(cfg) / 'iter_12.pth')
    assert any(key.endswith('input_quantizer.log_scale') for key in state)
    assert len(scalars_of(cfg_dir(cfg), 'accuracy/top1')) == 2


def test_accumulation_equals_the_large_batch(fpq_config):
    """Two halves accumulated are one step on the whole, LSQ's n included."""
    states = []
    for counts, batch in ((1, 100), (2, 50)):
        cfg = fpq_config(
            folder=f'n{counts}', name='fashion_mnist/resnet_lsq_w4a4.py',
            **{
                'optim_wrapper.accumulative_counts': counts,
                'train_dataloader.batch_size': batch,
                'train_dataloader.sampler.shuffle': False,
                'train_dataloader.dataset.indices': 100,
                'model.backbone.norm_eval': True,
                'param_scheduler.by_epoch': True,
                'param_scheduler.convert_to_iter_based': False,
            })
        runner = Runner.from_cfg(cfg)
        before = {}
        runner.register_hook(_Call(before_train=lambda r, b=before: b.update(
            {k: v.clone() for k, v in r.model.state_dict().items()})))
        runner.train()
        states.append({
            k: v - before[k] for k, v in runner.model.state_dict().items()
            if 'running' not in k and v.is_floating_point()})
    for key, update in states[0].items():
        torch.testing.assert_close(
            states[1][key], update, rtol=1e-2,
            atol=1e-3 * update.abs().max().item() + 1e-9, msg=key)


def test_frozen_stages_keep_still(fpq_config, fp):
    cfg = fpq_config(**{'model.backbone.frozen_stages': 1})
    state = train(cfg).model.state_dict()
    plain = weights(fp)
    key = 'backbone.layer1.0.conv1.weight'
    assert torch.equal(state[key], plain[key])
    other = 'backbone.layer2.0.conv1.weight'
    assert not torch.equal(state[other], plain[other])


def test_teacher_from_its_own_checkpoint(fpq_config, fp):
    """With teacher= and no load_from the student starts from the teacher."""
    cfg = fpq_config(fpq__teacher=str(fp), load_from=None)
    train(cfg)
    assert 'the student starts from fpq.teacher' in log_of(cfg_dir(cfg))
    assert not list(cfg_dir(cfg).glob('fpq_teacher*'))
    both = fpq_config(folder='both', fpq__teacher=str(fp))
    train(both)
    one, two = (weights(cfg_dir(c) / 'epoch_1.pth') for c in (cfg, both))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_pretrained_init_cfg_counts_as_full_precision_weights(fpq_config, fp):
    cfg = fpq_config(load_from=None, **{
        'model.init_cfg': dict(type='Pretrained', checkpoint=str(fp))})
    loaded = fpq_config(folder='loaded')
    one, two = (train(c).model.state_dict() for c in (cfg, loaded))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_pretrained_backbone_only_warns(fpq_config, fp):
    cfg = fpq_config(load_from=None, **{
        'model.backbone.init_cfg': dict(
            type='Pretrained', checkpoint=str(fp), prefix='backbone.')})
    train(cfg)
    assert 'random weights in head' in log_of(cfg_dir(cfg))


def test_a_shared_layer_called_twice(fpq_config, monkeypatch):
    """A head that calls its layer twice: both calls are distilled."""
    cfg = fpq_config(**{'model.head.type': 'TwiceHead'})
    pairs = []
    runner = Runner.from_cfg(cfg)
    attach = CSDLoss.attach
    monkeypatch.setattr(
        CSDLoss, 'attach', lambda self, s, t, axis: pairs.append(
            s.shape) or attach(self, s, t, axis))
    runner.train()
    heads = [shape for shape in pairs if shape == (100, 10)]
    assert len(heads) == 2 * 14
    assert isinstance(runner.model.head.fc, QuantizedLayer)
    assert 'leaves out' not in log_of(cfg_dir(cfg))


def test_a_layer_with_two_names(fpq_config, fp, tmp_path):
    """Its quantizers are under both in the state: saved, held, resumed."""
    content = load_file(str(fp))
    state = content['state_dict']
    state.update({key.replace('fc', 'same_fc'): value
                  for key, value in state.items() if 'fc' in key})
    torch.save(content, tmp_path / 'two_names.pth')
    head = {'model.head.type': 'TwoNamesHead'}
    train(fpq_config(load_from=str(tmp_path / 'two_names.pth'), **head))
    saved = tmp_path / 'run/epoch_1.pth'
    assert 'head.same_fc.weight_quantizer.log_scale' in weights(saved)
    runner = train(fpq_config(load_from=None, resume=True, **head, **{
        'train_cfg.max_epochs': 2}))
    assert runner.epoch == 2


def test_the_clock_has_the_runs_seed_and_rank(fpq_config):
    cfg = fpq_config()
    cfg.randomness = dict(seed=11)
    runner = Runner.from_cfg(cfg)
    seen = []
    runner.register_hook(_Call(before_train_iter=lambda r: seen.append(
        (noise_clock(r.model).seed, noise_clock(r.model).iteration))))
    runner.train()
    assert seen == [(11, i) for i in range(14)]


def test_autocast_on_the_cpu(fpq_config):
    cfg = fpq_config(**{'optim_wrapper.type': 'CPUAutocast'})
    runner = train(cfg)
    state = runner.model.state_dict()
    assert all(v.dtype is not torch.bfloat16 for v in state.values())
    assert all(torch.isfinite(v).all() for v in state.values()
               if v.is_floating_point())
    assert scalars_of(cfg_dir(cfg), 'accuracy/top1')[-1] > 50


class Branched(ToyNet):
    """With branches that are to be fused for deployment."""

    def __init__(self):
        super().__init__()
        self.block = RepVGGBlock(1, 1)

    def logits(self, x):
        return super().logits(self.block(x.view(-1, 1, 2, 2)).flatten(1))


def test_what_a_conversion_warns_of_is_in_the_log(tmp_path, recwarn):
    toy_train(tmp_path, Branched)
    assert 'FPQ: 1 blocks train branches that are to be fused' in log_of(
        tmp_path / 'run')
    assert not any('to be fused' in str(each.message) for each in recwarn)
