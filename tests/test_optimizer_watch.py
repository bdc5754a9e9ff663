"""An optimizer that was made before convert, and never trains the steps."""

import warnings

import pytest
import torch
from torch import nn

from fpq_plugin import calibrate, convert, param_groups
from fpq_plugin.optimizer_watch import PATIENCE


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
    assert '0.weight_quantizer.scale' in told[0]


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
