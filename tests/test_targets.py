"""A file for an engine holds what the engine takes, and says for whom."""

import onnx
import pytest
import torch
from exported_models import answers, net, quantized, weights_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin.export import export_onnx
from fpq_plugin.targets import (
    STANDARD,
    TENSORRT,
    known_targets,
    register_target,
    target_of,
)

SYMMETRIC = dict(bits=8, symmetric=True)


@pytest.fixture
def x():
    return torch.randn(40, 3, 8, 8)


def tensors_of(path):
    """Integers and zero points of a file, and how many float biases."""
    graph = onnx.load(path).graph
    known = {t.name: t for t in graph.initializer}
    found, biases = [], 0
    for node in graph.node:
        if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
            assert len(node.input) == 3
            found += [known[name] for name in (node.input[0], node.input[2])
                      if name in known]
        elif node.op_type in ('Conv', 'Gemm') and len(node.input) == 3:
            biases += known[node.input[2]].data_type == onnx.TensorProto.FLOAT
    return found, biases


@pytest.mark.parametrize('options', [
    dict(weight=dict(bits=8), activation=SYMMETRIC),
    dict(weight=dict(bits=4), activation=dict(bits=4, symmetric=True)),
    # Under 8 bits what is counted from the zero fits as well.
    dict(weight=dict(bits=4, symmetric=False), activation=dict(bits=5),
         first_last_bits=7),
    dict(weight=SYMMETRIC, activation=None, first_last_bits=None),
])
def test_tensorrt_gets_int8_around_zero(options, x, tmp_path):
    model = quantized(net(), x, **options)
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], target='tensorrt')
    tensors, biases = tensors_of(path)
    assert {t.data_type for t in tensors} == {onnx.TensorProto.INT8}
    assert biases == 4
    zero_points = [t for t in tensors if t.name not in {
        node.input[0] for node in onnx.load(path).graph.node}]
    assert all(not onnx.numpy_helper.to_array(t).any() for t in zero_points)
    assert onnx.load(path).opset_import[0].version == 17
    notes = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert notes['fpq.target'] == 'tensorrt'
    text = str(report)
    assert 'checked against the rules of TensorRT, and not run in it' in text
    if options['activation']:
        assert 'integer biases: 0 of 4 layers; float because TensorRT takes ' \
            'none (4)' in text


@given(st.integers(2, 7), st.floats(-3, 3))
def test_an_offset_is_counted_from_its_zero(tmp_path_factory, bits, shift):
    """The same values, as the unpacked file says."""
    x = torch.randn(20, 6) + shift
    model = quantized(nn.Sequential(nn.Linear(6, 5)), x,
                      weight=dict(bits=bits), activation=dict(bits=bits),
                      first_last_bits=None)
    folder = tmp_path_factory.mktemp('target')
    for target in (None, 'tensorrt'):
        export_onnx(model, folder / f'{target}.onnx', [(x, None)],
                    target=target)
    with torch.no_grad():
        expected = model(x)
    for file in folder.iterdir():
        torch.testing.assert_close(answers(file, x), expected, atol=1e-4,
                                   rtol=1e-4)
    assert weights_of(folder / 'tensorrt.onnx')[1] == ['INT8']


def test_what_tensorrt_does_not_take_is_named(x, tmp_path):
    model = quantized(net(), x, weight=dict(bits=8), activation=dict(bits=8))
    path = tmp_path / 'model.onnx'

    def refused(match, **options):
        with pytest.raises(ValueError, match=match):
            export_onnx(model, path, [(x, None)], **options)
        assert not any(tmp_path.iterdir())

    refused('not exported: 0.input_quantizer: TensorRT takes integers of INT8 '
            r'around 0, not of 0 to 255 around \d+: train it with '
            r'symmetric=True, or with 7 bits(.|\n)*3.input_quantizer',
            target='tensorrt')
    refused('TensorRT takes no uint8', target='tensorrt',
            unsigned_weights=True)
    refused(r"one of \['onnxruntime', .*, 'executorch'\] or None, got "
            "'TensorRT'", target='TensorRT')
    refused('got True', target=True)


def test_a_name_is_one_target():
    assert target_of('tensorrt') is TENSORRT
    assert target_of(None) is STANDARD
    assert known_targets() == [
        'onnxruntime', 'tensorrt', 'openvino', 'executorch']
    with pytest.raises(ValueError, match="a target 'tensorrt' already"):
        register_target(TENSORRT)
