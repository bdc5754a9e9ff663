"""Exported files answer in onnxruntime as the fake-quantized model."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmcv.cnn import ConvAWS2d, ConvWS2d
from torch import nn

import fpq_plugin
from fpq_plugin import BaseFakeQuantize, calibrate, convert
from fpq_plugin.export import ParityError, export_onnx
from fpq_plugin.export.graph import Graph
from fpq_plugin.export.runtime import saturates

BITS = st.integers(2, 8)
EIGHT, ZERO_POINT = ('UINT8', 128) if saturates() else ('INT8', 0)


def quantized(model, x, **options):
    """``model`` converted, calibrated on ``x``, in eval mode."""
    convert(model, perturbation=dict(p=1.0), **options)
    calibrate(model, [x])
    return model.eval()


def answers(path, x):
    session = onnxruntime.InferenceSession(
        path, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {'input': x.numpy()})[0])


def weights_of(path):
    """The stored weights of a file: integers, and the names of the types."""
    graph = Graph(onnx.load(path))
    names = [
        node.input[0] for node in graph.nodes
        if node.op_type == 'DequantizeLinear'
        and node.input[0] in graph.constants
    ]
    return ([graph.value(name).astype(np.int64) for name in names], [
        onnx.TensorProto.DataType.Name(graph.constants[name].data_type)
        for name in names
    ])


def assert_same(found, expected, atol=1e-5):
    """All but a value in a thousand, which a rounding edge may shift."""
    far = (found - expected).abs() > atol * (1 + expected.abs().max())
    assert far.double().mean() <= 1e-3


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


def batch_norm(channels, generator):
    """One with gains of any sign, and a zero."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(channels, generator=generator))
        norm.running_var.copy_(
            torch.rand(channels, generator=generator) + 0.1)
        norm.weight[0] = 0
    return norm


@given(BITS, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_batch_norm_is_folded_where_exact(tmp_path_factory, bits, bias,
                                          per_channel, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, 8, 8, generator=generator)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias),
                          batch_norm(6, generator))
    quantized(model, x, weight=dict(bits=bits, per_channel=per_channel),
              first_last_bits=None)
    path = tmp_path_factory.mktemp('norm') / 'model.onnx'
    export_onnx(model, path, [(x, None)])
    with torch.no_grad():
        assert_same(answers(path, x), model(x))
    trained = torch.round(
        model[0].weight_quantizer(model[0].weight.detach()) /
        model[0].weight_quantizer.step().view(-1, 1, 1, 1))
    flipped = trained[model[1].weight < 0]
    lowest = -128 if bits > 4 else -8
    fits = not (flipped == lowest).any()
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert ('BatchNormalization' in nodes) != fits
    integers = torch.tensor(weights_of(path)[0][0])
    integers -= ZERO_POINT if bits == 8 else 0
    signs = torch.sign(model[1].weight).view(-1, 1, 1, 1)
    assert torch.equal(integers, (trained * signs if fits else
                                  trained).long())


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


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
        nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8, stride=2), nn.ReLU(),
        nn.Conv2d(8, 4, 1, groups=2), nn.Flatten(), nn.Linear(4 * 9, 5))


@pytest.fixture
def x():
    return torch.randn(40, 3, 8, 8)


def test_the_file_says_what_it_is(x, tmp_path):
    """Bits, versions, integers, a free batch size, no trace of training."""
    model = quantized(net(), x)
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x[:7], None), (x[7:], None)],
                         source=dict(checkpoint='epoch_3.pth'))
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    notes = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(notes['fpq.bits']) == {
        '0': 'W8A8', '3': 'W4A4', '5': 'W4A4', '7': 'W8A8'}
    assert notes['fpq.version'] == fpq_plugin.__version__
    assert notes['fpq.torch'] == torch.__version__
    assert notes['fpq.scales'] == 'LSQFakeQuantize'
    assert notes['fpq.checkpoint'] == 'epoch_3.pth'
    assert {o.domain: o.version for o in proto.opset_import} == {'': 21}
    assert weights_of(path)[1] == [EIGHT, 'INT4', 'INT4', EIGHT]
    kinds = {node.op_type for node in proto.graph.node}
    assert kinds == {'QuantizeLinear', 'DequantizeLinear', 'Conv', 'Add',
                     'Relu', 'Clip', 'Flatten', 'Gemm'}
    assert path.stat().st_size == report.size < report.float_size
    assert report.parity.images == 40
    assert report.parity.other_class == 0
    assert answers(path, x[:3]).shape == (3, 5)
    assert [(r.weight_bits, r.weights) for r in report.layers] == [
        (8, 216), (4, 72), (4, 16), (8, 180)]
    text = str(report)
    for part in ('file, kB', 'batch 1', '5', 'equal class 100.00 %'):
        assert part in text
    json.dumps(report.as_dict())


def test_eight_bits_run_on_integers(x, tmp_path):
    """onnxruntime takes its 8-bit kernels; opset 17 is enough."""
    model = quantized(net(), x, weight=dict(bits=8), activation=dict(bits=8))
    path, optimized = tmp_path / 'model.onnx', tmp_path / 'optimized.onnx'
    export_onnx(model, path, [(x, None)])
    assert onnx.load(path).opset_import[0].version == 17
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimized)
    onnxruntime.InferenceSession(path, options)
    kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    assert 'QLinearConv' in kinds


def test_top1_is_told(x, tmp_path):
    model = quantized(net(), x)
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[:10] += 1
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, labels)])
    assert report.parity.top1_trained == report.parity.top1_exported == 75


def test_a_model_in_training_stays_so(x, tmp_path):
    model = quantized(net(), x)
    model.train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export_onnx(model, tmp_path / 'model.onnx', [(x, None)])
    assert model.training
    assert not model[1].training
    assert all(torch.equal(v, before[k])
               for k, v in model.state_dict().items())
    model(x).sum().backward()


class Restless(nn.Module):
    """Answers otherwise every time."""

    def forward(self, x):
        return x + torch.randn_like(x)


def test_models_that_differ_are_refused(x, tmp_path):
    """Nothing is written, and what is there stays."""
    model = nn.Sequential(quantized(net(), x), Restless())
    path = tmp_path / 'model.onnx'
    path.write_text('before')
    with pytest.raises(ParityError, match='of 40 classes are other ones'):
        export_onnx(model, path, [(x, None)])
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]


class PowersOfTwo(BaseFakeQuantize):
    """Values that are no integers times a step."""

    def _make_scale(self, scale):
        self.register_buffer('scale', scale)

    def step(self):
        return self.scale

    def fake_quantize(self, x):
        return x.sign() * torch.round(torch.log2(x.abs())).exp2()


def test_what_cannot_be_exported_is_named(x, tmp_path):
    path = tmp_path / 'model.onnx'

    def refused(model, match, error=ValueError):
        with pytest.raises(error, match=match):
            export_onnx(model, path, [(x, None)])
        assert not any(tmp_path.iterdir())

    refused(net(), 'no fake quantizer that is switched on')
    model = net()
    convert(model)
    refused(model, r'0.weight_quantizer: it has no step yet: calibrate(.|\n)*'
            '7.input_quantizer: it has no step')
    model = quantized(net(), x)
    grid = model[3].input_quantizer.grid
    half = grid()
    half = type(half)(half.step, half.zero_point + 0.5, 0, 15)
    model[3].input_quantizer.grid = lambda: half
    refused(model, '3.input_quantizer: its zero point is not an integer')
    model = quantized(net(), x)
    model[3].weight_quantizer = PowersOfTwo(
        8, symmetric=True, per_channel=True, num_channels=8)
    calibrate(model, [x])
    refused(model, '3.weight_quantizer: its values are no integers of -128')

    class Pair(nn.Module):

        def forward(self, x):
            return x, x

    refused(nn.Sequential(quantized(net(), x), Pair()),
            'must return one tensor, and Sequential returns a tuple')
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'):
        export_onnx(model, tmp_path / 'nowhere/model.onnx', [(x, None)])
    with pytest.raises(ValueError, match='no input to compare on'):
        export_onnx(quantized(net(), x), path, [])


def test_biases_are_float_where_integers_cost_accuracy(tmp_path):
    """Two classes, a bias apart that integers of 8-bit kernels lack."""
    torch.manual_seed(1)
    # Nearly the same inputs, at the edge between the classes.
    x = torch.rand(64, 4, 4) + 0.01 * torch.rand(400, 64, 4, 4)
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 2, 4), nn.Flatten())
    quantized(model, x, weight=dict(bits=8), activation=dict(bits=8))
    with torch.no_grad():
        difference = model(x) @ torch.tensor([1., -1.])
        model[2].bias[0] -= difference.median()
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)])
    assert report.parity.other_class <= 1
    kinds = [t.data_type for t in onnx.load(path).graph.initializer]
    assert onnx.TensorProto.INT32 not in kinds
    report = export_onnx(model, path, [(x, None)], tolerance=100)
    kinds = [t.data_type for t in onnx.load(path).graph.initializer]
    assert onnx.TensorProto.INT32 in kinds
    assert report.parity.other_class > 1


def test_a_coarse_bias_before_a_pooling_is_added_in_float(tmp_path):
    """onnxruntime would round it in steps that the next layer can see."""
    torch.manual_seed(0)
    x = torch.rand(40, 8, 12, 12)
    model = nn.Sequential(
        nn.Conv2d(8, 8, 1, groups=8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5))
    with torch.no_grad():
        # Next to nothing is left of the range of 1 that the input has.
        model[0].weight.fill_(1)
        model[0].bias.copy_(-0.9 - 0.01 * torch.rand(8))
    quantized(model, x, weight=dict(bits=8), activation=dict(bits=8),
              first_last_bits=None)
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, None)])
    assert report.parity.mean_difference < 1e-4 * report.parity.spread


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
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, None)])
    assert report.parity.mean_difference < 1e-3 * report.parity.spread
    kinds = weights_of(tmp_path / 'model.onnx')[1]
    assert kinds.count(kind) == 3
    assert 'FLOAT' not in kinds


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
