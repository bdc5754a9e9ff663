"""An optimizer that was made before convert, and never trains the steps."""

import copy
import warnings

import pytest
import torch
from torch import nn

from fpq_plugin import Recipe, calibrate, convert, param_groups
from fpq_plugin.optimizer_watch import (
    PATIENCE,
    bound_changes,
    bound_steps,
)


def train(model, *optimizers):
    """What is warned of in a plain loop."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(PATIENCE + 5):
            loss = model(torch.randn(8, 4)).square().mean()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    return [str(w.message) for w in caught if 'FPQ' in str(w.message)]


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def quantized(model):
    convert(model)
    calibrate(model, [torch.randn(20, 4)])
    return model


def test_an_optimizer_from_before_convert_is_told_of(model):
    early = torch.optim.SGD(model.parameters(), lr=0.01)
    told = train(quantized(model), early)
    assert len(told) == 1
    assert 'SGD trains the weights of the model but not 4' in told[0]
    assert '0.weight_quantizer.log_scale' in told[0]


def test_one_from_after_it_is_not(model):
    late = torch.optim.SGD(param_groups(quantized(model), lr=0.01))
    assert not train(model, late)


def test_the_steps_may_have_an_optimizer_of_their_own(model):
    early = torch.optim.SGD(model.parameters(), lr=0.01)
    quantized(model)
    rest = torch.optim.Adam(param_groups(model, lr=0.01)[1:])
    assert not train(model, early, rest)


def test_frozen_steps_and_other_models_wait_for_none(model):
    early = torch.optim.SGD(model.parameters(), lr=0.01)
    quantized(model)
    for name, parameter in model.named_parameters():
        if name.endswith('scale'):
            parameter.requires_grad_(False)
    assert not train(model, early)
    other = nn.Sequential(nn.Linear(4, 2))
    assert not train(other, torch.optim.SGD(other.parameters(), lr=0.01))


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=100.0, momentum=0.9),
    lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.5),
    lambda p: torch.optim.SGD(p, lr=1e-3, foreach=True),
]


@pytest.mark.parametrize('make', OPTIMIZERS)
def test_a_step_changes_by_a_little_at_most(model, make):
    """In a plain loop too; and no other parameter is touched."""
    bounded, free = quantized(model), torch.nn.Linear(4, 4)
    free.load_state_dict(bounded[0].state_dict(), strict=False)
    optimizer = make(param_groups(bounded))
    other = make(free.parameters())
    largest = 0.0
    for step in range(4):
        torch.manual_seed(step)
        for parameter in [*bounded.parameters(), *free.parameters()]:
            parameter.grad = torch.randn(parameter.shape)
        free.weight.grad = bounded[0].weight.grad.clone()
        before = {n: p.detach().clone()
                  for n, p in bounded.named_parameters()}
        optimizer.step()
        other.step()
        for name, parameter in bounded.named_parameters():
            change = (parameter - before[name]).abs().max()
            if name.endswith('log_scale'):
                assert change <= 0.05 + 1e-6
                largest = max(largest, float(change))
        torch.testing.assert_close(bounded[0].weight, free.weight)
    big = optimizer.param_groups[0]['lr'] > 0.1
    assert largest > 0.049 if big else 0 < largest < 0.01


def test_the_bound_ends_with_its_handles():
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    handles = bound_changes(optimizer, {parameter: 0.5})
    for expected in (0.5, 2.5):
        parameter.grad = -torch.full((3, ), 2.0)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(),
                                   torch.full((3, ), expected))
        for handle in handles:
            handle.remove()


def test_scaled_gradients_are_bounded_after_they_are_unscaled(model):
    """As AMP's: 65536 times as large in the backward."""
    quantized(model)
    x = torch.randn(8, 4)
    states = []
    for scale in (1.0, 65536.0):
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(param_groups(own, lr=0.1))
        bound_steps(optimizer)
        (own(x).square().mean() * scale).backward()
        for parameter in own.parameters():
            parameter.grad /= scale
        optimizer.step()
        states.append(own.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


@pytest.mark.parametrize('made', ['by a recipe', 'as a copy', 'unpickled'])
def test_a_model_is_bounded_however_it_was_made(model, made, tmp_path):
    if made == 'by a recipe':
        Recipe().convert(model)
        calibrate(model, [torch.randn(20, 4)])
    else:
        quantized(model)
    if made == 'as a copy':
        model = copy.deepcopy(model)
    if made == 'unpickled':
        torch.save(model, tmp_path / 'model.pth')
        model = torch.load(tmp_path / 'model.pth', weights_only=False)
    check_bound(model, torch.optim.Adam(model.parameters(), lr=1.0))


def check_bound(model, optimizer):
    """Steps that only a closure gives gradients to are bounded, too."""
    def closure():
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.step(closure)
        changes = [float((p - before[n]).abs().max())
                   for n, p in model.named_parameters() if 'log_scale' in n]
        assert 0.04 < max(changes) < 0.0501


def test_parameters_that_join_later_are_bounded(model):
    quantized(model)
    rest = [p for n, p in model.named_parameters() if 'scale' not in n]
    optimizer = torch.optim.Adam(rest, lr=1.0)
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    optimizer.add_param_group(dict(params=[
        p for n, p in model.named_parameters() if 'log_scale' in n]))
    check_bound(model, optimizer)
