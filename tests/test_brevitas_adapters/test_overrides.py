"""Overrides of a stock quantizer's attributes."""

import pytest
import torch
from brevitas.quant import Uint8ActPerTensorFloat
from torch import nn

from brevitas_adapters.stock import refuse_let
from fpq_plugin import calibrate, convert


def convert_with(let):
    model = nn.Sequential(nn.Linear(2, 2))
    convert(model, backend='brevitas',
            activation=dict(type='ShiftedUint8ActPerTensorFloat', let=let))
    return model


@pytest.mark.parametrize(('let', 'message'), [
    (dict(colect_stats_steps=3),
     "let: unknown option 'colect_stats_steps'. Did you mean 'collect_stats"),
    (dict(scaling_impl_type='bogus'), 'Brevitas refuses it'),
    (dict(quant_type='binary'), 'FPQ takes quantizers to integers'),
    (dict(bit_width=3), "let: the bit width is the option 'bits'"),
    ([3], 'activation.let: must be a dict'),
])
def test_a_wrong_override_is_named(let, message):
    with pytest.raises(ValueError, match=message):
        convert_with(let)


def test_an_override_takes_effect():
    x = torch.randn(500, 2)
    steps = []
    for let in (None, dict(high_percentile_q=90.0, low_percentile_q=10.0)):
        model = convert_with(let)
        calibrate(model, [x])
        steps.append(model[0].input_quant.scale().item())
    assert steps[1] < 0.7 * steps[0]


def test_checking_draws_no_random_number():
    state = torch.get_rng_state()
    refuse_let(Uint8ActPerTensorFloat, dict(collect_stats_steps=3))
    assert torch.equal(torch.get_rng_state(), state)
