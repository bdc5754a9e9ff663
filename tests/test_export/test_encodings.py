"""AIMET's encodings name the tensors of a float ONNX file, and their grids."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_models import batch_norm, net, quantized
from onnx import numpy_helper
from torch import nn

from fpq_plugin.export import export_encodings

# Version 0.6.1 of AIMET's "Encoding Format Specification".
FIELDS = {'bitwidth', 'dtype', 'is_symmetric', 'max', 'min', 'offset', 'scale'}


@pytest.fixture
def x():
    return torch.randn(9, 3, 8, 8)


def written(path, model, x, **options):
    report = export_encodings(model, path, [(x, None)], **options)
    return (report, json.loads(path.read_text()),
            onnx.load(f'{path}.onnx'))


def values(graph, x):
    """Every tensor of a float graph, by onnxruntime, for an input."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    names = [name for node in graph.graph.node for name in node.output]
    del graph.graph.output[:]
    graph.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names)
    run = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=['CPUExecutionProvider'])
    return dict(zip(names, run.run(None, {'input': x.numpy()})))


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_each_layer_has_its_encodings(backend, x, tmp_path):
    model = quantized(net(), x, backend=backend)
    path = tmp_path / 'model.encodings'
    report, made, graph = written(path, model, x,
                                  source=dict(checkpoint='epoch_3.pth'))
    assert made['version'] == '0.6.1'
    layers = [model[0], model[3], model[5], model[7]]
    features = made['activation_encodings']
    assert len(features) == 4
    for layer, (encoding, ) in zip(layers, features.values()):
        grid = layer.input_quantizer.grid()
        assert set(encoding) == FIELDS
        assert encoding['bitwidth'] == layer.input_quantizer.num_bits
        assert encoding['scale'] == pytest.approx(grid.step.item())
        for end, q in (('min', grid.quant_min), ('max', grid.quant_max)):
            assert encoding[end] == pytest.approx(
                (q - grid.zero_point.item()) * grid.step.item())
        assert encoding['offset'] == round(
            encoding['min'] / encoding['scale'])
    stored = {each.name: numpy_helper.to_array(each)
              for each in graph.graph.initializer}
    for layer, (name, channels) in zip(layers,
                                       made['param_encodings'].items()):
        assert len(channels) == len(layer.weight)
        for weight, each in zip(stored[name], channels):
            assert set(each) == FIELDS
            assert each['bitwidth'] == layer.weight_quantizer.num_bits
            assert each['is_symmetric'] == 'True'
            integers = weight / each['scale'] - each['offset']
            np.testing.assert_allclose(integers, np.round(integers), rtol=0,
                                       atol=1e-3)
            assert integers.min() > -0.1
            assert integers.max() < 2**each['bitwidth'] - 0.9
    assert {node.op_type for node in graph.graph.node} == {
        'Conv', 'Relu', 'Clip', 'Flatten', 'Gemm'}
    assert {p.key: p.value for p in graph.metadata_props}[
        'fpq.checkpoint'] == 'epoch_3.pth'
    assert report.parity.largest_difference < 1e-5
    assert "Qualcomm's tools were not run" in str(report)


class Residual(nn.Module):
    """What enters the layer is added to its output, in float."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = batch_norm(3, torch.Generator().manual_seed(0))

    def forward(self, x):
        return x + self.norm(self.conv(x))


def test_a_tensor_that_others_read_in_float_is_parted(x, tmp_path):
    model = quantized(Residual(), x)
    report, made, graph = written(tmp_path / 'model.encodings', model, x)
    (name, (encoding, )), = made['activation_encodings'].items()
    apart, = (node for node in graph.graph.node if node.op_type == 'Identity')
    assert list(apart.output) == [name]
    seen = values(graph, x)[name]
    rounded = np.clip(
        np.round(seen / encoding['scale']), encoding['offset'],
        encoding['offset'] + 2**encoding['bitwidth'] - 1) * encoding['scale']
    wanted = model.conv.input_quantizer(torch.from_numpy(seen)).detach()
    np.testing.assert_allclose(rounded, wanted, rtol=0, atol=1e-5)
    assert report.parity.largest_difference < 1e-4


@pytest.mark.parametrize('bits', [4, 8])
def test_narrow_weights_are_symmetric_ones(bits, x, tmp_path):
    """Whose lowest integer no value has; the values are those of the model."""
    path = tmp_path / 'model.encodings'
    model = quantized(net(), x, weight=dict(bits=bits, narrow_range=True),
                      first_last_bits=None)
    _, made, _ = written(path, model, x)
    lowest = -2**(bits - 1)
    for encodings in made['param_encodings'].values():
        for each in encodings:
            assert each['bitwidth'] == bits
            assert each['is_symmetric'] == 'True'
            assert each['offset'] == lowest
            assert each['min'] == pytest.approx(lowest * each['scale'])
            assert each['max'] == pytest.approx((-lowest - 1) * each['scale'])


def test_narrow_features_are_refused(x, tmp_path):
    model = quantized(net(), x, activation=dict(
        bits=4, symmetric=True, narrow_range=True))
    with pytest.raises(ValueError, match='input_quantizer has a narrow range'):
        written(tmp_path / 'model.encodings', model, x)
