"""torch.ao's own fake quantizer and observers, as FPQ's."""

import pytest
import torch

from fpq_plugin import TorchAOFakeQuantize


def test_torch_ao_follows_the_moving_average_in_training_alone():
    quantizer = TorchAOFakeQuantize(bits=8, averaging_constant=0.5)
    quantizer.observe(torch.tensor([0.0, 1.0]))
    quantizer.initialize()
    assert quantizer.step().item() == pytest.approx(1 / 255)
    quantizer(torch.tensor([0.0, 2.0]))
    assert quantizer.step().item() == pytest.approx(1.5 / 255)
    quantizer.eval()(torch.tensor([0.0, 9.0]))
    assert quantizer.step().item() == pytest.approx(1.5 / 255)
