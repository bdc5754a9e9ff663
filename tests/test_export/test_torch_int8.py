"""torch's own int8 kernels answer as the fake-quantized model."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin import calibrate, convert
from fpq_plugin.export import to_torch_int8, torch_int8
from fpq_plugin.export.torch_int8 import (
    Int8Conv2d,
    Int8Linear,
    has_kernels,
    kernels_saturate,
)

needs_kernels = pytest.mark.skipif(
    not has_kernels(), reason='this torch has no int8 layers with float '
    'output')
MOST_BITS = 7 if has_kernels() and kernels_saturate() else 8


def quantized(model, x, bits=MOST_BITS, **options):
    options = dict(weight=dict(bits=bits), activation=dict(bits=bits),
                   first_last_bits=None, **options)
    convert(model, **options)
    calibrate(model, [x])
    return model.eval()


@needs_kernels
@given(st.sampled_from([1, 2]), st.integers(1, 3), st.integers(1, 3),
       st.integers(1, 3), st.sampled_from([0, 1, (2, 1), 'same']),
       st.sampled_from(['zeros', 'reflect']), st.booleans(),
       st.integers(2, MOST_BITS), st.floats(-2, 2))
def test_any_convolution(groups, inputs, outputs, stride, padding, mode, bias,
                         bits, shift):
    conv = nn.Conv2d(
        groups * inputs, groups * outputs, 3,
        stride=1 if padding == 'same' else stride, padding=padding,
        groups=groups, bias=bias, padding_mode=mode)
    x = torch.randn(4, groups * inputs, 7, 8) + shift
    model = quantized(nn.Sequential(conv), x, bits)
    int8 = to_torch_int8(model)
    with torch.no_grad():
        torch.testing.assert_close(int8(x), model(x), atol=1e-5, rtol=1e-5)


@needs_kernels
def test_a_whole_model(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU(),
        nn.Flatten(2), nn.Linear(16, 6), nn.GELU(), nn.Linear(6, 5))
    x = torch.randn(32, 3, 8, 8)
    quantized(model, x, perturbation=dict(p=1.0)).train()
    before = type(model[0])
    int8 = to_torch_int8(model)
    assert type(model[0]) is before
    assert model.training
    assert [type(m) for m in int8 if type(m).__module__.endswith('int8')] == [
        Int8Conv2d, Int8Conv2d, Int8Linear, Int8Linear]
    with torch.no_grad():
        torch.testing.assert_close(int8(x), model.eval()(x))
    state = int8.state_dict()
    assert state['0.weight'].dtype == torch.int8
    torch.save(state, io.BytesIO())


@needs_kernels
def test_packed_weights_are_not_traced():
    x = torch.randn(8, 4)
    int8 = to_torch_int8(quantized(nn.Sequential(nn.Linear(4, 3)), x))
    with pytest.raises(RuntimeError, match='Int8Linear cannot be traced'):
        torch.jit.trace(int8, x)


@needs_kernels
def test_what_cannot_be_converted_is_named():
    x = torch.randn(4, 6)

    def refused(match, **options):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        convert(model, **options)
        calibrate(model, [x])
        with pytest.raises(ValueError, match=match):
            to_torch_int8(model)

    refused('not converted: 0: int8 needs a quantized weight', weight=None)
    refused('not converted: 0: int8 needs an unsigned input',
            activation=dict(symmetric=True))
    refused('not converted: 0: int8 needs a symmetric, signed weight',
            weight=dict(symmetric=False))
    refused('not converted: 0: no int8 layer for BrevitasLinear',
            backend='brevitas')


@needs_kernels
def test_eight_bits_are_refused_where_they_saturate(monkeypatch):
    monkeypatch.setattr(torch_int8, 'kernels_saturate', lambda: True)
    x = torch.randn(8, 4)
    with pytest.raises(ValueError, match='-128 to 127 saturates .* 7 bits'):
        to_torch_int8(quantized(nn.Sequential(nn.Linear(4, 3)), x, 8))
    to_torch_int8(quantized(nn.Sequential(nn.Linear(4, 3)), x, 7))


@pytest.mark.skipif(has_kernels(), reason='this torch has the int8 layers')
def test_a_torch_without_the_kernels_says_so():
    model = quantized(nn.Sequential(nn.Linear(4, 3)), torch.randn(8, 4))
    with pytest.raises(RuntimeError, match='has no int8 layers with float'):
        to_torch_int8(model)


@needs_kernels
def test_unsigned_weights_are_refused():
    """They are 0 to 255, and no int8."""
    x = torch.rand(8, 6)
    model = nn.Sequential(nn.Linear(6, 4))
    convert(model, weight=dict(bits=8, signed=False), first_last_bits=None)
    calibrate(model, [x])
    with pytest.raises(ValueError, match='0: int8 needs a symmetric, signed '
                                         'weight'):
        to_torch_int8(model.eval())


@needs_kernels
@pytest.mark.parametrize('take', [
    copy.deepcopy, pickle.dumps,
    lambda int8: torch.save(int8, io.BytesIO())])
def test_what_is_packed_is_not_copied(take):
    x = torch.rand(8, 6)
    int8 = to_torch_int8(quantized(nn.Sequential(nn.Linear(6, 4)), x))
    with pytest.raises(TypeError, match='Int8Linear cannot be copied or '
                       'pickled.*Copy or save the trained model'):
        take(int8)


@needs_kernels
@pytest.mark.parametrize('strict', [True, False])
def test_what_is_packed_takes_no_other_state(strict):
    x = torch.rand(8, 6)
    one, other = (to_torch_int8(quantized(nn.Sequential(nn.Linear(6, 4)), x))
                  for _ in range(2))
    with pytest.raises(RuntimeError, match='0: its weight is packed.*Load '
                       "the trained model's state into that model"):
        one.load_state_dict(other.state_dict(), strict=strict)
