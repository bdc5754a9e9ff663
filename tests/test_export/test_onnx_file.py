"""A file is written if onnxruntime answers as the trained model."""

import json

import onnx
import onnxruntime
import pytest
import torch
from exported_models import EIGHT, answers, net, quantized, weights_of
from torch import nn

import fpq_plugin
from fpq_plugin import BaseFakeQuantize, calibrate, convert
from fpq_plugin.export import ParityError, export_onnx


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
    assert notes['fpq.scales'] == 'LogLSQFakeQuantize'
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


@pytest.mark.parametrize('wrap', [torch.compile, nn.DataParallel])
def test_a_wrapped_model_is_exported_as_it_is(wrap, x, tmp_path):
    model = quantized(net(), x)
    path = tmp_path / 'model.onnx'
    report = export_onnx(wrap(model), path, [(x.requires_grad_(), None)])
    assert [layer.name for layer in report.layers] == ['0', '3', '5', '7']


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
            return x, 3

    refused(nn.Sequential(quantized(net(), x), Pair()),
            'may return tensors, in tuples, lists and dicts, and this one '
            'returns a int')
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'):
        export_onnx(model, tmp_path / 'nowhere/model.onnx', [(x, None)])
    with pytest.raises(ValueError, match='no input to compare on'):
        export_onnx(quantized(net(), x), path, [])
