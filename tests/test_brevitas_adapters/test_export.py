"""Brevitas layers and quantizers through FPQ's one export."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from fpq_plugin import calibrate, convert
from fpq_plugin.export import export_onnx


def model_of(**options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU(),
        nn.Conv2d(8, 4, 1, groups=2), nn.Flatten(), nn.Linear(4 * 16, 5))
    x = torch.randn(16, 3, 8, 8)
    model(x)  # batch norm statistics
    convert(model, perturbation=dict(p=1.0), **options)
    calibrate(model, [x])
    return model, x


@pytest.mark.parametrize('options', [
    dict(),
    dict(weight=dict(bits=2), activation=dict(bits=3)),
    dict(weight=dict(type='Int8WeightPerChannelFloat', bits=4),
         activation=dict(type='ShiftedUint8ActPerTensorFloat', bits=4)),
    dict(weight=dict(type='Int8WeightPerTensorFloat', bits=4),
         activation=dict(type='Uint8ActPerTensorFloat', bits=4)),
    dict(activation=None),
], ids=['lsq', 'lsq_w2a3', 'shifted', 'unsigned', 'weights_only'])
def test_the_file_answers_as_the_model(options, tmp_path):
    """SFP is on in the model, and has no part in the file."""
    model, x = model_of(backend='brevitas', **options)
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)])
    assert model.training
    assert report.parity.largest_difference < 1e-5
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    quantized = 0 if options.get('activation', 1) is None else 4
    assert kinds['QuantizeLinear'] == quantized
    assert kinds['DequantizeLinear'] == quantized + 4


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_both_backends_make_the_same_file(bits, tmp_path):
    files = []
    for backend in ('torch_ao', 'brevitas'):
        model, x = model_of(backend=backend, weight=dict(bits=bits),
                            activation=dict(bits=bits))
        path = tmp_path / f'{backend}.onnx'
        export_onnx(model, path, [(x, None)])
        graph = onnx.load(path).graph
        files.append(([n.op_type for n in graph.node],
                      sorted(t.raw_data for t in graph.initializer)))
    assert files[0] == files[1]


def test_a_rounding_that_onnx_lacks_is_refused(tmp_path):
    model, x = model_of(
        backend='brevitas', weight=dict(bits=4),
        activation=dict(type='ShiftedUint8ActPerTensorFloat', bits=4,
                        let=dict(float_to_int_impl_type='floor')))
    with pytest.raises(ValueError, match='0.input_quantizer: FloorSte does'):
        export_onnx(model, tmp_path / 'model.onnx', [(x, None)])
