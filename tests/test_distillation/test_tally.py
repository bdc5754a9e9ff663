"""Losses of several forwards, and of none."""

import copy

import pytest
import torch
from torch import nn

from fpq_plugin import CSDLoss, Distiller, LogitKD, calibrate, convert


def pair(criterion=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    teacher = copy.deepcopy(model)
    convert(model)
    calibrate(model, [data(0)])
    return model, Distiller(model, teacher, criterion or CSDLoss(),
                            **options)


def data(seed):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))


def test_losses_of_all_forwards_since_the_last_call_are_summed():
    """Gradient accumulation, several views: as if each had been taken."""
    criteria = [CSDLoss(), LogitKD()]
    model, distiller = pair(criteria)
    single, parts, layers = [], [], []
    for seed in (1, 2, 3):
        model(data(seed))
        single.append(distiller.loss())
        parts.append(distiller.losses())
        layers.append(distiller.layer_losses())
    sum(single).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for seed in (1, 2, 3):
        model(data(seed))
    total = distiller.loss()
    torch.testing.assert_close(total, sum(single))
    for label, part in distiller.losses().items():
        torch.testing.assert_close(part, sum(p[label] for p in parts))
    for name, part in distiller.layer_losses().items():
        torch.testing.assert_close(part, sum(p[name] for p in layers))
    total.backward()
    for parameter, grad in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, grad)


def test_asked_again_it_answers_the_same_until_the_next_forward():
    model, distiller = pair()
    model(data(1))
    loss = distiller.loss()
    assert torch.equal(distiller.loss(), loss)
    assert torch.equal(sum(distiller.losses().values()), loss)
    model(data(2))
    second = distiller.loss()
    assert not torch.equal(second, loss)
    model(data(1))
    assert torch.equal(distiller.loss(), loss)


@pytest.mark.parametrize('how', ['eval', 'no_grad', 'condition'])
def test_after_another_forward_a_taken_loss_is_no_more(how):
    model, distiller = pair(condition=lambda kwargs: not other)
    other = False
    model(data(1))
    loss = distiller.loss()
    other = how == 'condition'
    if how == 'eval':
        model.eval()(data(2))
        model.train()
    elif how == 'no_grad':
        with torch.no_grad():
            model(data(2))
    else:
        model(data(2))
    with pytest.raises(RuntimeError, match='since the loss was last taken'):
        distiller.loss()
    assert distiller.layer_losses()  # of the last training forward
    other = False
    model(data(1))
    assert torch.equal(distiller.loss(), loss)


def test_an_evaluation_between_forward_and_loss_changes_nothing():
    model, distiller = pair()
    model(data(1))
    model.eval()(data(2))
    loss = distiller.loss()
    model.train()(data(1))
    assert torch.equal(distiller.loss(), loss)


def test_a_forward_that_fails_counts_for_nothing():
    model, distiller = pair()
    model(data(1))
    with pytest.raises(RuntimeError, match='shapes'):
        model(data(1)[:, :3])
    loss = distiller.loss()
    model(data(1))
    assert torch.equal(distiller.loss(), loss)


def test_losses_that_nobody_takes_are_told_once():
    told = []
    model, distiller = pair(warn=told.append)
    for _ in range(210):
        model(data(1))
    assert len(told) == 1
    assert 'loss() was not called' in told[0]
    distiller.loss()
    for _ in range(99):
        model(data(1))
        distiller.loss()
    assert len(told) == 1
