"""Layers answer in onnxruntime as they do with fake quantizers."""

import pytest
import torch
from exported_models import (
    EIGHT,
    ZERO_POINT,
    answers,
    assert_same,
    batch_norm,
    quantized,
    weights_of,
)
from hypothesis import given
from hypothesis import strategies as st
from mmcv.cnn import ConvAWS2d, ConvWS2d
from torch import nn

from fpq_plugin.export import export_onnx

BITS = st.integers(2, 8)


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 2, 4]))
    return nn.Conv2d(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        stride=draw(st.integers(1, 3)),
        padding=draw(st.sampled_from([0, 1, 2, 'valid'])),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(['zeros', 'reflect', 'replicate'])))


@given(convolutions(), BITS, BITS, st.floats(-3, 3), st.integers(0, 2**31))
def test_any_convolution(tmp_path_factory, conv, weight, activation, shift,
                         seed):
    """Shapes, strides, groups, padding modes, bits, zero points."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, conv.in_channels, 9, 7, generator=generator) + shift
    model = quantized(nn.Sequential(conv), x, weight=dict(bits=weight),
                      activation=dict(bits=activation), first_last_bits=None)
    path = tmp_path_factory.mktemp('conv') / 'model.onnx'
    export_onnx(model, path, [(x, None)])
    with torch.no_grad():
        assert_same(answers(path, x), model(x))
    (integers, ), (kind, ) = weights_of(path)
    assert kind == (
        'INT4' if weight <= 4 else EIGHT if weight == 8 else 'INT8')
    integers -= ZERO_POINT if weight == 8 else 0
    assert -2**(weight - 1) <= integers.min()
    assert integers.max() < 2**(weight - 1)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 3, 4]),
       st.booleans(), st.booleans(), BITS, BITS, st.booleans(),
       st.floats(-3, 3))
def test_any_linear_layer(tmp_path_factory, inputs, outputs, axes, bias, relu,
                          weight, activation, per_channel, shift):
    x = torch.randn(*[6, 2, 3][:axes - 1], inputs) + shift
    model = nn.Sequential(
        nn.Linear(inputs, 7), nn.ReLU() if relu else nn.GELU(),
        nn.Linear(7, outputs, bias=bias))
    quantized(model, x, activation=dict(bits=activation),
              weight=dict(bits=weight, per_channel=per_channel),
              first_last_bits=None)
    path = tmp_path_factory.mktemp('linear') / 'model.onnx'
    export_onnx(model, path, [(x, None)])
    more = torch.randn(11, *x.shape[1:]) + shift
    with torch.no_grad():
        if activation < 8 or weight <= 4:
            assert_same(answers(path, more), model(more))
        else:  # onnxruntime rounds the first layer's bias
            far = (answers(path, more) - model(more)).abs().max()
            assert far < 0.02 * model(more).abs().max() + 1e-3


class Twice(nn.Module):
    """One convolution with two batch norms, as detection heads have."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = (batch_norm(3, generator) for _ in '12')

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x)).relu()))


def test_a_layer_called_twice_is_stored_once(tmp_path):
    x = torch.randn(5, 3, 8, 8)
    model = quantized(Twice(), x)
    path = tmp_path / 'model.onnx'
    export_onnx(model, path, [(x, None)])
    with torch.no_grad():
        assert_same(answers(path, x), model(x))
    assert len(weights_of(path)[0]) == 1


@pytest.mark.parametrize(('bits', 'kind'), [(4, 'INT4'), (8, EIGHT)])
@pytest.mark.parametrize('layer', [ConvWS2d, ConvAWS2d])
def test_a_weight_that_its_layer_computes_is_stored(layer, bits, kind,
                                                    tmp_path):
    torch.manual_seed(0)
    x = torch.rand(16, 4, 10, 10)
    model = nn.Sequential(layer(4, 8, 3), nn.ReLU(), layer(8, 8, 3),
                          nn.Flatten(), nn.Linear(8 * 36, 5))
    quantized(model, x, weight=dict(bits=bits), activation=dict(bits=bits),
              first_last_bits=None)
    hooks = [len(each._forward_pre_hooks) for each in model.modules()]
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, None)])
    assert report.parity.mean_difference < 1e-3 * report.parity.spread
    kinds = weights_of(tmp_path / 'model.onnx')[1]
    assert kinds.count(kind) == 3
    assert 'FLOAT' not in kinds
    # What looked at the tensor is gone.
    assert hooks == [len(each._forward_pre_hooks) for each in model.modules()]


class Transposed(nn.Module):
    """Maps (N, C, L) of tokens (N, L, C), for a layer of tokens."""

    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Of one tensor."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


LAYERS = {
    'conv1d': lambda: (nn.Conv1d(4, 6, 3, groups=2), (4, 11)),
    'conv3d': lambda: (nn.Conv3d(4, 6, 3, stride=2), (4, 5, 6, 7)),
    'transposed1d': lambda: (nn.ConvTranspose1d(4, 6, 3), (4, 9)),
    'transposed2d': lambda: (
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (4, 5, 6)),
    'depthwise': lambda: (nn.Conv2d(6, 6, 3, groups=6), (6, 8, 8)),
    'attention': lambda: (
        nn.Sequential(Transposed(), SelfAttention()), (8, 3, 3)),
}


@pytest.mark.parametrize('bits', [3, 8])
@pytest.mark.parametrize('name', LAYERS)
def test_every_kind_of_layer(name, bits, tmp_path):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    x = torch.randn(32, *shape)
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(7))
    model(x)
    quantized(model, x, weight=dict(bits=bits), activation=dict(bits=bits),
              first_last_bits=None)
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)])
    with torch.no_grad():
        assert_same(answers(path, x), model(x), 1e-2 if bits == 8 else 1e-5)
    assert sum(k != 'INT32' for k in weights_of(path)[1]) == len(
        report.layers)
    assert all(layer.weight_bits == bits for layer in report.layers)
