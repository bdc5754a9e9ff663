"""The mse observer against a brute-force search in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin import calibrate, convert
from fpq_plugin.quantizers import LSQFakeQuantize, PACTFakeQuantize


def error_64(x, bits, low, high, symmetric):
    """Mean squared error of equations (1), (4) and (5), one element a time."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        quant_min, quant_max = -2**(bits - 1), 2**(bits - 1) - 1
        step = 2 * max(-low, high) / (2**bits - 1)
        zero = 0
    else:
        quant_min, quant_max = 0, 2**bits - 1
        step = (high - low) / (2**bits - 1)
        zero = np.clip(np.round(quant_max - high / step), 0, quant_max)
    total = 0.0
    for value in x:
        integer = np.clip(np.round(value / step) + zero, quant_min, quant_max)
        total += ((integer - zero) * step - value)**2
    return total / len(x)


@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4]), st.booleans(),
       st.booleans())
def test_no_share_of_the_range_has_a_smaller_error(seed, bits, symmetric,
                                                   relu):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, generator=generator)**3
    x = x.relu() if relu else x
    quantizer = LSQFakeQuantize(bits, symmetric=symmetric, observer='mse')
    quantizer.observe(x)
    quantizer.initialize()
    found = (quantizer.eval()(x) - x).double().square().mean().item()
    values = x.double().tolist()
    least = min(
        error_64(values, bits, min(values) * k / 64, max(values) * k / 64,
                 symmetric) for k in range(1, 65))
    assert found <= least * (1 + 1e-4) + 1e-12


def test_each_channel_has_its_own_share():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    weight[2, 0, 0, 0] = 30.0
    steps = {}
    for observer in ('min_max', 'mse'):
        quantizer = LSQFakeQuantize(4, symmetric=True, per_channel=True,
                                    observer=observer)
        quantizer.observe(weight)
        quantizer.initialize()
        steps[observer] = quantizer.step()
        alone = LSQFakeQuantize(4, symmetric=True, observer=observer)
        alone.observe(weight[2])
        alone.initialize()
        assert torch.equal(alone.step()[0], quantizer.step()[2])
    assert (steps['mse'] <= steps['min_max']).all()
    assert (steps['mse'] < steps['min_max']).any()


def test_long_tensors_are_sampled_and_draw_nothing_from_the_run():
    """The error is within 2 % of the whole tensor's least."""
    torch.manual_seed(0)
    x = torch.randn(1, 16, 128, 128).relu()
    quantizer = LSQFakeQuantize(2, observer='mse')
    state = torch.get_rng_state()
    quantizer.observe(x)
    assert torch.equal(state, torch.get_rng_state())
    quantizer.initialize()
    least = torch.inf
    for k in range(1, 65):
        step = x.max() * k / 64 / 3
        error = ((x / step).round().clamp(0, 3) * step - x).square().mean()
        least = min(least, error)
    found = (quantizer.eval()(x) - x).square().mean()
    assert found <= 1.02 * least


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_through_convert_and_in_pact(backend):
    """Of an outlier of 2-bit ReLU maps less than half is kept."""
    torch.manual_seed(0)
    x = torch.randn(64, 1, 8, 8).relu()
    x[0, 0, 0, 0] = 20
    for kind in (LSQFakeQuantize, PACTFakeQuantize):
        highest = {}
        for observer in ('min_max', 'mse'):
            model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
            convert(
                model,
                first_last_bits=None,
                backend=backend,
                activation=dict(type=kind.__name__, bits=2, observer=observer))
            calibrate(model, [x])
            held = model[0].eval().input_quantizer(x)
            highest[observer] = held.max().item()
        assert highest['min_max'] == pytest.approx(20, rel=1e-5)
        assert highest['mse'] < 10


def test_another_observer_is_refused():
    with pytest.raises(ValueError, match="observer must be one of .*'mae'"):
        LSQFakeQuantize(4, observer='mae')
