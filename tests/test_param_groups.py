"""Scales have a group of their own, whatever built the optimizer."""

import copy

import pytest
import torch
from torch import nn

from fpq_plugin import convert, param_groups
from fpq_plugin.param_groups import quantizer_parameters, separate_scales


def net():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    convert(model)
    return model


def check(model, optimizer, lr):
    scales = {id(p) for p in quantizer_parameters(model).values()}
    assert len(scales) == 4
    seen = []
    for group in optimizer.param_groups:
        own = [id(p) in scales for p in group['params']]
        assert all(own) or not any(own)
        assert group['params']
        if any(own):
            assert group['weight_decay'] == 0
            assert group['lr'] == pytest.approx(lr)
        seen += [id(p) for p in group['params']]
    assert sorted(seen) == sorted(id(p) for p in model.parameters())


def test_one_group_is_split():
    model = net()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.2, weight_decay=1e-4, momentum=0.9)
    separate_scales(model, [optimizer], lr_mult=0.5)
    check(model, optimizer, 0.1)
    assert [g['momentum'] for g in optimizer.param_groups] == [0.9, 0.9]


def test_a_group_for_each_parameter():
    model = net()
    optimizer = torch.optim.AdamW(
        [dict(params=[p]) for p in model.parameters()], lr=0.2)
    separate_scales(model, [optimizer])
    check(model, optimizer, 0.2)


def test_scales_that_the_optimizer_does_not_have_join_their_layer():
    model = net()
    own = {id(p) for p in quantizer_parameters(model).values()}
    optimizer = torch.optim.SGD([
        dict(params=[p for p in layer.parameters() if id(p) not in own],
             lr=lr) for layer, lr in zip(model, (0.1, 0.2, 0.3))],
        lr=1, weight_decay=1e-4)
    separate_scales(model, [optimizer], lr_mult=0.5)
    rates = {id(p): (g['lr'], g['weight_decay'])
             for g in optimizer.param_groups for p in g['params']}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in quantizer_parameters(model).items():
        assert rates[id(parameter)] == (
            0.05 if name.startswith('0') else 0.15, 0)
    assert rates[id(model[2].weight)] == (0.3, 1e-4)


def test_a_layer_that_the_optimizer_does_not_have_is_named():
    model = net()
    optimizer = torch.optim.SGD(model[:2].parameters(), lr=0.1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match='2.weight_quantizer.log_scale in 0'):
        separate_scales(model, [optimizer])
    assert optimizer.state_dict() == before


def test_a_scale_in_two_optimizers_is_named():
    model = net()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)
                  for _ in range(2)]
    with pytest.raises(ValueError, match='0.weight_quantizer.log_scale in 2'):
        separate_scales(model, optimizers)


def test_parameters_with_names():
    model = net()
    try:
        optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    except (TypeError, ValueError):
        pytest.skip('not in this torch')
    separate_scales(model, [optimizer])
    check(model, optimizer, 0.1)
    names = {n: id(p) for n, p in model.named_parameters()}
    for group in optimizer.param_groups:
        assert [names[n] for n in group['param_names']] == [
            id(p) for p in group['params']]


def test_an_optimizer_that_steps_another_one_is_refused():
    class Sharded(torch.optim.SGD):

        def __init__(self, params, lr):
            super().__init__(params, lr)
            self.inner = torch.optim.SGD(self.param_groups[0]['params'], lr)

    model = net()
    with pytest.raises(ValueError, match='Sharded does not let its groups'):
        separate_scales(model, [Sharded(model.parameters(), 0.1)])


def test_groups_for_a_plain_loop():
    model = net()
    optimizer = torch.optim.SGD(
        param_groups(model, lr=0.1, weight_decay=1e-4))
    check(model, optimizer, 0.1)


@pytest.mark.parametrize('many', [False, True])
def test_pacts_clip_has_its_own_weight_decay(many):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    convert(model, activation=dict(type='PACTFakeQuantize',
                                   weight_decay=0.03))
    groups = [dict(params=[p]) for p in model.parameters()]
    optimizer = torch.optim.SGD(
        groups if many else model.parameters(), lr=0.1, weight_decay=1e-4)
    separate_scales(model, [optimizer], lr_mult=0.5)
    plain = torch.optim.SGD(param_groups(model, lr=0.1, weight_decay=1e-4))
    names = {id(p): name for name, p in model.named_parameters()}
    for built, lr in ((optimizer, 0.05), (plain, 0.1)):
        found = {}
        for group in built.param_groups:
            for p in group['params']:
                assert names[id(p)] not in found
                found[names[id(p)]] = (group['lr'], group['weight_decay'])
        assert found['0.input_quantizer.clip'] == (lr, 0.03)
        assert found['1.weight_quantizer.log_scale'] == (lr, 0.0)
        assert found['1.weight'] == (0.1, 1e-4)
        assert set(found) == set(names.values())


def test_frozen_scales_may_be_left_out():
    """As layer-wise learning-rate constructors do."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    convert(model)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1)
    separate_scales(model, [optimizer])
    assert len(optimizer.param_groups[1]['params']) == 2
