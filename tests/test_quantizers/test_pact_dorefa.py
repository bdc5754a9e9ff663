"""PACT's clip after a ReLU; DoReFa is for weights."""

import pytest
import torch
from torch import nn

from fpq_plugin import PACTFakeQuantize, convert
from fpq_plugin.quantizers import DoReFaFakeQuantize


def test_pact_is_the_papers_after_a_relu():
    """y = clip(x, 0, alpha); d y / d alpha = 1 where x >= alpha, else 0."""
    quantizer = PACTFakeQuantize(bits=4)
    quantizer(torch.tensor([0.0, 3.0]))
    with torch.no_grad():
        quantizer.clip.fill_(2.0)
    x = torch.tensor([0.0, 0.5, 1.3, 2.5, 7.0])
    out = quantizer(x)
    step = 2.0 / 15
    torch.testing.assert_close(out, torch.round(x.clamp(0, 2) / step) * step)
    out.sum().backward()
    assert quantizer.clip.grad.item() == 2.0


def test_dorefa_is_refused_for_features():
    with pytest.raises(ValueError, match=r'activation\.type: DoReFa.* weigh'):
        convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
                activation=dict(type='DoReFaFakeQuantize'))


def test_dorefas_step_is_that_of_the_last_training_forward():
    """Of 2 M / (2^q - 1), M the largest weight; eval mode leaves it."""
    quantizer = DoReFaFakeQuantize(bits=4)
    weight = torch.linspace(-1.5, 0.9, 8).view(2, 4)
    quantizer.observe(weight)
    quantizer.initialize()
    quantizer.train()
    quantizer(2 * weight)
    assert quantizer.step().item() == pytest.approx(2 * 3.0 / 15)
    quantizer.eval()
    quantizer(7 * weight)
    assert quantizer.step().item() == pytest.approx(2 * 3.0 / 15)
