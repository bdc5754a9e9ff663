"""The scales' groups in a Runner, whatever builds the optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
)
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F
from toy_runs import (
    At,
    ToyNet,
    on_gloo,
    on_ranks,
    register,
    toy_config,
    toy_train,
)

from fpq_plugin.param_groups import quantizer_parameters


class WeightsAndBiases:
    """Groups of ``.weight`` and ``.bias``, as mmyolo's constructors make."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.cfg = copy.deepcopy(dict(optim_wrapper_cfg))

    def __call__(self, model):
        weights, biases = [], []
        for module in model.modules():
            for name, group in (('weight', weights), ('bias', biases)):
                if isinstance(getattr(module, name, None), nn.Parameter):
                    group.append(getattr(module, name))
        optimizer = OPTIMIZERS.build(
            dict(self.cfg['optimizer'], params=weights))
        optimizer.add_param_group(
            dict(params=biases, weight_decay=0, lr=0.5))
        return OPTIM_WRAPPERS.build(
            dict(type='OptimWrapper', optimizer=optimizer))


class OneForEachLayer:
    """An OptimWrapperDict; the last layer's optimizer has its names."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        return OptimWrapperDict(
            a=OptimWrapper(torch.optim.SGD([model.a.weight, model.a.bias],
                                           lr=0.1, weight_decay=0.1)),
            b=OptimWrapper(torch.optim.Adam(model.b.parameters(), lr=0.2)),
            c=OptimWrapper(torch.optim.SGD([dict(
                params=list(model.c.parameters()), lr=0.3)])))


class Alternating(ToyNet):

    def train_step(self, data, optim_wrapper):
        losses = self._run_forward(data, mode='loss')
        loss, log = self.parse_losses(losses)
        for each in optim_wrapper.values():
            each.zero_grad()
        loss.backward()
        for each in optim_wrapper.values():
            each.step()
        return log


def groups_of(runner, *optimizers):
    """From each scale's name to its group; there is one, without decay."""
    names = {id(p): n for n, p in quantizer_parameters(runner.model).items()}
    found = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group['params']:
                name = names.get(id(parameter))
                if name is not None:
                    assert name not in found
                    assert group['weight_decay'] == 0
                    found[name] = group
    assert set(found) == set(names.values())
    return found


def moved(runner):
    """The scales that training moved."""
    start = Runner.from_cfg(toy_config(
        runner_folder(runner), name='start', optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.0))))
    start.train()
    old = quantizer_parameters(start.model)
    return {name for name, p in quantizer_parameters(runner.model).items()
            if not torch.equal(p, old[name])}


def runner_folder(runner):
    from pathlib import Path
    return Path(runner.work_dir).parent


def test_a_constructor_that_knows_weights_and_biases(tmp_path):
    runner = toy_train(tmp_path, fpq=dict(scale_lr_mult=0.5),
                       optim_wrapper=dict(
        constructor=register(OPTIM_WRAPPER_CONSTRUCTORS, WeightsAndBiases),
        optimizer=dict(type='SGD', lr=0.01, weight_decay=0.1)))
    groups = groups_of(runner, runner.optim_wrapper.optimizer)
    assert {group['lr'] for group in groups.values()} == {0.005}
    assert moved(runner) == set(groups)


def test_an_optimizer_for_each_layer(tmp_path):
    runner = toy_train(tmp_path, Alternating, optim_wrapper=dict(
        constructor=register(OPTIM_WRAPPER_CONSTRUCTORS, OneForEachLayer)))
    groups = groups_of(runner, *(
        w.optimizer for w in runner.optim_wrapper.values()))
    assert {name: group['lr'] for name, group in groups.items()} == {
        f'{layer}.{part}_quantizer.log_scale': lr
        for layer, lr in (('a', 0.1), ('b', 0.2), ('c', 0.3))
        for part in ('weight', 'input')}


@pytest.mark.parametrize('optimizer', [
    dict(type='Adam', lr=0.01, fused=True),
    dict(type='AdamW', lr=0.01, foreach=True, weight_decay=0.1),
    dict(type='SGD', lr=0.01, momentum=0.9, nesterov=True, maximize=False),
    dict(type='Rprop', lr=0.01),
], ids=lambda cfg: cfg['type'])
def test_options_of_the_groups_are_kept(tmp_path, optimizer):
    if not hasattr(torch.optim, optimizer['type']):
        pytest.skip('not in this torch')
    runner = toy_train(
        tmp_path, optim_wrapper=dict(optimizer=dict(optimizer)))
    built = runner.optim_wrapper.optimizer
    for group in built.param_groups:
        assert all(group[k] == v for k, v in optimizer.items()
                   if k not in ('type', 'weight_decay'))
    assert {id(p) for p in quantizer_parameters(runner.model).values()} == {
        id(p) for p in built.param_groups[-1]['params']}


class Shared(ToyNet):
    """A layer with two names."""

    def __init__(self):
        super().__init__()
        self.again = self.b

    def logits(self, x):
        return self.c(self.again(self.b(self.a(x).relu()).relu()))


def test_a_shared_layer_and_bypass_duplicate(tmp_path):
    runner = toy_train(tmp_path, Shared, optim_wrapper=dict(
        optimizer=dict(type='SGD', lr=0.01, weight_decay=0.1),
        paramwise_cfg=dict(bypass_duplicate=True)))
    groups_of(runner, runner.optim_wrapper.optimizer)


class Left(OneForEachLayer):
    """Leaves a layer out."""

    def __call__(self, model):
        return OptimWrapper(torch.optim.SGD(
            [*model.a.parameters(), *model.c.parameters()], lr=0.1))


def test_a_layer_that_the_constructor_leaves_out_is_named(tmp_path):
    runner = Runner.from_cfg(toy_config(tmp_path, optim_wrapper=dict(
        constructor=register(OPTIM_WRAPPER_CONSTRUCTORS, Left))))
    with pytest.raises(ValueError, match='b.weight_quantizer.log_scale in 0'):
        runner.train()


# MMEngine saves on the first rank alone, and a sharded state needs all.
UNSAVED = dict(type='CheckpointHook', save_optimizer=False)


def sharded(folder, kind):
    zero = dict(type='ZeroRedundancyOptimizer', optimizer_type='SGD')
    optimizer = dict(zero if kind == 'sharded' else dict(type='SGD'),
                     lr=0.05, momentum=0.9, weight_decay=0.1)
    cfg = toy_config(
        folder, name=kind, optim_wrapper=dict(optimizer=optimizer),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=True,
                             T_max=4), **on_gloo())
    cfg.default_hooks.checkpoint = UNSAVED
    runner = Runner.from_cfg(cfg)
    runner.train()
    built = runner.optim_wrapper.optimizer
    runner.model = runner.model.module
    groups_of(runner, built)
    if kind == 'sharded':
        own = built.optim.param_groups
        assert [len(g['params']) for g in own] != [
            len(g['params']) for g in built.param_groups]
    return runner.model.state_dict()


def test_a_sharded_optimizer_trains_as_a_whole_one(tmp_path):
    """On two ranks; each steps a part of the parameters."""
    one, two = on_ranks(sharded, tmp_path, 'sharded')
    whole, _ = on_ranks(sharded, tmp_path, 'whole')
    for key, value in whole.items():
        assert torch.equal(one[key], two[key]), key
        torch.testing.assert_close(one[key], value, msg=key)


class Zero:
    """Builds a sharded optimizer that the config does not tell of."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        if hasattr(model, 'module'):
            model = model.module
        return OptimWrapper(OPTIMIZERS.build(dict(
            type='ZeroRedundancyOptimizer', optimizer_type='SGD',
            params=model.parameters(), lr=0.1)))


def hidden(folder):
    cfg = toy_config(folder, optim_wrapper=dict(
        constructor=register(OPTIM_WRAPPER_CONSTRUCTORS, Zero)), **on_gloo())
    with pytest.raises(ValueError, match='ZeroRedundancyOptimizer does not'):
        Runner.from_cfg(cfg).train()


def test_a_sharded_optimizer_of_a_constructor_is_refused(tmp_path):
    on_ranks(hidden, tmp_path)


class OnlyRead(ToyNet):
    """The weight of ``b`` is used without a call of ``b``."""

    def logits(self, x):
        x = F.linear(self.a(x).relu(), self.b.weight, self.b.bias)
        return self.c(x.relu())


def train(folder, model, wrapper, **more):
    """The state, the frozen parameters and the wrapper's options."""
    cfg = toy_config(folder, model, **on_gloo(**wrapper), **more)
    runner = Runner.from_cfg(cfg)
    places = []
    runner.register_hook(At(before_train_iter=lambda r: places.append(
        id(r.model))))
    runner.train()
    assert is_model_wrapper(runner.model)
    assert len(set(places)) == 1
    inner = runner.model.module
    assert not is_model_wrapper(inner)
    return (inner.state_dict(),
            [n for n, p in inner.named_parameters() if not p.requires_grad],
            runner.iter)


def only_read(folder, wrapper):
    first = train(folder, OnlyRead, wrapper)
    again = train(folder, OnlyRead, wrapper, resume=True, load_from=None,
                  train_cfg=dict(by_epoch=True, max_epochs=2))
    return first, again


def equal(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_layer_that_is_only_read(tmp_path):
    """Its quantizers are idle and frozen, in a resumed run too."""
    ranks = on_ranks(only_read, tmp_path, {})
    for (state, frozen, number), (end, still, iteration) in ranks:
        assert frozen == still == [
            'b.weight_quantizer.log_scale', 'b.input_quantizer.log_scale']
        assert (number, iteration) == (3, 6)
        assert not torch.equal(state['b.weight'], end['b.weight'])
    for number in (0, 1):
        equal(ranks[0][number][0], ranks[1][number][0])


OPTIONS = ('static_graph', 'find_unused_parameters',
           'gradient_as_bucket_view')


def with_each_option(folder):
    return [train(folder, ToyNet, wrapper, name=str(number))
            for number, wrapper in enumerate(
                [{}, *({option: True} for option in OPTIONS)])]


def test_options_of_the_wrapper_change_nothing(tmp_path):
    one, two = on_ranks(with_each_option, tmp_path)
    plain = one[0][0]
    assert one[0][1] == []
    assert sum(key.endswith('quantizer.log_scale') for key in plain) == 6
    for state, *_ in (*one, *two):
        equal(state, plain)


def test_in_one_process_idle_quantizers_are_frozen_too(tmp_path):
    runner = Runner.from_cfg(toy_config(tmp_path, OnlyRead))
    runner.train()
    assert {n: p.requires_grad
            for n, p in quantizer_parameters(runner.model).items()} == {
        f'{layer}.{part}_quantizer.log_scale': layer != 'b'
        for layer in 'abc' for part in ('weight', 'input')}


def test_a_runner_without_a_config_says_so(fpq_config):
    cfg = fpq_config()
    runner = Runner.from_cfg(cfg)
    runner.cfg.pop('optim_wrapper')
    with pytest.raises(ValueError, match='build it with Runner.from_cfg'):
        runner.train()
