"""Modes and random states are what they were, after an error too."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from fpq_plugin import LSQFakeQuantize
from fpq_plugin._compat.restoring import kept_modes, same_randomness


@pytest.fixture(params=[False, True], ids=['ends', 'breaks off'])
def leave(request):
    """Ends a block, or breaks it off by an error."""

    def run(context, body):
        try:
            with context:
                body()
                if request.param:
                    raise KeyError
        except KeyError:
            assert request.param

    return run


def test_every_modules_own_mode_stays(leave):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    leave(kept_modes(model), model.eval)
    assert [module.training for module in model.modules()] == modes


def test_torch_aos_switches_stay(leave):
    quantizer = LSQFakeQuantize(bits=4)
    quantizer.observer_enabled.fill_(1)

    def turn():
        quantizer.observer_enabled.fill_(0)
        quantizer.fake_quant_enabled.fill_(0)

    leave(kept_modes(quantizer), turn)
    assert int(quantizer.observer_enabled) == 1
    assert int(quantizer.fake_quant_enabled) == 1


def test_every_generator_goes_on_where_it_was(leave):

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    wanted = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    leave(same_randomness(), draw)
    assert draw() == wanted
