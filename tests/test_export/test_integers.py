"""Types and integers of a quantizer, before there is a file."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exported_models import quantized
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin import LSQFakeQuantize
from fpq_plugin.export.integers import (
    INTEGER_TYPES,
    IntegerGrid,
    integer_grid,
    narrowest_type,
    weight_integers,
)
from fpq_plugin.targets import ONNXRUNTIME, TENSORRT


def grid_of(low, high):
    zero = np.zeros(())
    return IntegerGrid(zero, zero, low, high, None,
                       narrowest_type(low, high, True))


@given(st.integers(-128, -1), st.integers(0, 127))
def test_what_may_saturate_is_what_two_products_say(low, high):
    sums = [2 * 255 * low, 2 * 255 * high]
    fits = all(-2**15 <= total < 2**15 for total in sums)
    # -64 fits, and so does what a batch norm makes of it.
    assert grid_of(low, high).may_saturate() != fits


@given(st.integers(-128, 0), st.integers(0, 255))
def test_no_narrower_type_holds_the_range(low, high):
    if low < 0 and high > 127:
        with pytest.raises(ValueError, match=f'{low} to {high}'):
            narrowest_type(low, high, stored=True)
        return
    found = narrowest_type(low, high, stored=True)
    holding = [kind for kind in INTEGER_TYPES if kind.holds(low, high)
               and kind.name.startswith('U') == (low == 0)]
    assert found == min(holding, key=lambda kind: kind.high - kind.low)
    # What is not stored is never below a byte.
    wide = narrowest_type(low, high, stored=False)
    assert wide.name == ('UINT8' if low == 0 else 'INT8')


@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('symmetric', [False, True])
def test_integers_times_steps_are_the_fake_quantized_weight(
        symmetric, per_channel):
    torch.manual_seed(0)
    model = quantized(
        nn.Sequential(nn.Linear(6, 5)), torch.randn(9, 6),
        weight=dict(bits=4, symmetric=symmetric, per_channel=per_channel),
        first_last_bits=None)
    quantizer, weight = model[0].weight_quantizer, model[0].weight.detach()
    grid = weight_integers(quantizer, weight.numpy())
    step, zero_point = (grid.along_axis(each)
                        for each in (grid.step, grid.zero_point))
    np.testing.assert_allclose((grid.weight - zero_point) * step,
                               quantizer(weight).detach(), rtol=1e-6)
    assert grid.weight.min() >= grid.low
    assert grid.weight.max() <= grid.high
    assert grid.type.name == ('INT4' if symmetric else 'UINT4')


def test_a_grid_turns_with_its_weight():
    grid = IntegerGrid(np.array([1., 2.]), np.zeros(2), -8, 7, 0,
                       narrowest_type(-8, 7, True), np.ones((2, 3), int))
    before = grid.weight * grid.along_axis(grid.step)
    grid.transpose([1, 0])
    after = grid.weight * grid.along_axis(grid.step)
    np.testing.assert_array_equal(after, before.T)


def test_features_are_not_stored():
    model = quantized(nn.Sequential(nn.Linear(6, 5)), torch.rand(9, 6),
                      activation=dict(bits=2), first_last_bits=None)
    grid = integer_grid(model[0].input_quantizer)
    assert (grid.low, grid.high, grid.type.name) == (0, 3, 'UINT8')
    assert not grid.fills_type()
    assert integer_grid(model[0].input_quantizer,
                        stored=True).type.name == 'UINT4'


@pytest.mark.parametrize(('low', 'high', 'zero', 'stored', 'expected'), [
    (-8, 7, 0, False, ('UINT8', 0, 15, 8)),
    (-128, 127, 0, False, ('UINT8', 0, 255, 128)),
    (0, 255, 3, False, ('UINT8', 0, 255, 3)),
    # 0 itself must have an integer.
    (-8, 7, -9, False, ('UINT8', 1, 16, 0)),
    (0, 15, 6, True, ('INT8', -6, 9, 0)),
    # Too far from zero to be counted from there.
    (0, 255, 100, True, ('INT8', -128, 127, -28)),
])
def test_integers_are_counted_from_where_they_fit(low, high, zero, stored,
                                                  expected):
    """The same values: steps away from the zero point are the same."""
    quantizer = quantized(nn.Sequential(nn.Linear(6, 5)), torch.rand(9, 6),
                          activation=dict(bits=8))[0].input_quantizer
    grid = quantizer.grid()
    quantizer.grid = lambda: type(grid)(
        grid.step, torch.full_like(grid.zero_point, zero), low, high)
    found = integer_grid(quantizer, stored, ONNXRUNTIME)
    assert (found.type.name, found.low, found.high,
            int(found.zero_point)) == expected
    assert found.low - found.zero_point == low - zero
    assert found.high - found.zero_point == high - zero


@pytest.mark.parametrize(('target', 'high', 'why'), [
    (TENSORRT, 255, r'TensorRT takes integers of INT8 around 0, not of 0 to '
     '255 around 3: train it with symmetric=True'),
    (ONNXRUNTIME, 1000, '0 to 1000|1000'),
])
def test_ranges_that_fit_nowhere_are_refused(target, high, why):
    quantizer = quantized(nn.Sequential(nn.Linear(6, 5)), torch.rand(9, 6),
                          activation=dict(bits=8))[0].input_quantizer
    grid = quantizer.grid()
    quantizer.grid = lambda: type(grid)(
        grid.step, torch.full_like(grid.zero_point, 3), 0, high)
    with pytest.raises(ValueError, match=why) as caught:
        integer_grid(quantizer, False, target)
    assert ('symmetric' in str(caught.value)) == (target is TENSORRT)


def test_the_types_are_the_standards():
    """Of numpy and ml_dtypes; QuantizeLinear has 4 bits since opset 21."""
    assert [kind.name for kind in INTEGER_TYPES] == [
        'UINT4', 'INT4', 'UINT8', 'INT8']
    for kind in INTEGER_TYPES:
        known = ml_dtypes.iinfo(ir.DataType[kind.name].numpy())
        assert (kind.low, kind.high) == (known.min, known.max)
        wanted = f'tensor({kind.name.lower()})'
        first = next(
            number for number in range(10, 22)
            if any(wanted in allowed.allowed_type_strs
                   for allowed in onnx.defs.get_schema(
                       'QuantizeLinear', number).type_constraints))
        assert kind.opset == first


class Claims(LSQFakeQuantize):
    """Gives other values than its grid says."""

    gives = None

    def fake_quantize(self, x):
        return super().fake_quantize(x) if self.gives is None else self.gives


@pytest.mark.parametrize('integers', [
    [-9.0, 0.0, 7.0],  # below the grid
    [-8.0, 0.0, 8.0],  # above it
    [-8.0, 0.5, 7.0],  # between its values
])
def test_values_that_are_none_of_the_grids_are_refused(integers):
    quantizer = Claims(bits=4, symmetric=True)
    weight = torch.tensor([-1.0, 0.5, 1.0])
    quantizer(weight)
    step = quantizer.step()
    quantizer.gives = torch.tensor([-8.0, 0.0, 7.0]) * step
    found = weight_integers(quantizer, weight.numpy())
    assert found.weight.tolist() == [-8, 0, 7]
    quantizer.gives = torch.tensor(integers) * step
    with pytest.raises(ValueError, match='its values are no integers of -8'):
        weight_integers(quantizer, weight.numpy())
