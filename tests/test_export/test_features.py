"""Marks on features: one for each tensor, and ranges kept on integers."""

from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exported_models import JointNet, answers, assert_same, quantized
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin.export import export_onnx
from fpq_plugin.export.build import trace_model
from fpq_plugin.export.features import place_marks
from fpq_plugin.export.kernels import optimized_graph
from fpq_plugin.export.lowering import marks
from fpq_plugin.export.rewriting import read_graph
from fpq_plugin.targets import ONNXRUNTIME, OPENVINO, STANDARD


class Chain(nn.Module):
    """Calls quantizers and other things in a row, by name."""

    def __init__(self, *steps, **quantizers):
        super().__init__()
        self.steps = steps
        self.quantizers = nn.ModuleDict(quantizers)

    def forward(self, x):
        for step in self.steps:
            x = self.quantizers[step](x) if isinstance(step, str) else step(x)
        return x + 1


def quantizer(x, **options):
    layer = quantized(nn.Sequential(nn.Linear(x.shape[-1], 3)), x,
                      activation=options, first_last_bits=None)
    return layer[0].input_quantizer


def turned(x):
    return x.transpose(1, 2)


def pooled(x):
    return nn.functional.max_pool2d(x, 2)


def traced(model, x, target):
    """The graph with its marks in their places."""
    trace = trace_model(model.eval(), x, target)
    graph = read_graph(trace.graph).graph
    place_marks(graph, list(trace.quantizers.values()), target)
    return [node.op_type for node in graph]


@pytest.mark.parametrize('target', [STANDARD, ONNXRUNTIME])
def test_one_tensor_has_one_mark(target):
    x = torch.rand(6, 2, 4, 4)
    a, b = quantizer(x, bits=4), quantizer(x, bits=8)
    mark, add = 'FakeQuantize', 'Add'
    assert traced(Chain('a', 'a', a=a), x, target) == [mark, add]
    assert traced(Chain('a', turned, 'a', pooled, 'a', a=a), x, target) == [
        mark, 'Transpose', 'MaxPool', add]
    assert traced(Chain('a', 'b', a=a, b=b), x, target) == [mark, mark, add]
    # A sum is another tensor.
    assert traced(Chain('a', lambda x: x + 1, 'a', a=a), x, target) == [
        mark, add, mark, add]


def test_two_marks_on_one_tensor_are_one():
    x = torch.rand(6, 2, 4, 4)

    class Both(nn.Module):

        def __init__(self):
            super().__init__()
            self.a = quantizer(x, bits=4)

        def forward(self, x):
            return self.a(x) * self.a(x).relu()

    assert traced(Both(), x, STANDARD) == ['FakeQuantize', 'Relu', 'Mul']


def test_a_mark_is_right_behind_a_layer_where_that_must_end_in_one():
    x = torch.rand(6, 2, 4, 4)

    def kinds(target):
        return traced(Chain(torch.relu, pooled, turned, 'a',
                            a=quantizer(x, bits=4)), x, target)

    assert kinds(STANDARD) == ['Relu', 'MaxPool', 'Transpose',
                               'FakeQuantize', 'Add']
    for target in (ONNXRUNTIME, OPENVINO):
        assert kinds(target) == ['Relu', 'FakeQuantize', 'MaxPool',
                                 'Transpose', 'Add']


def exported(model, x, path):
    """The kinds of a file's nodes, once both ways to run it are compared."""
    export_onnx(model, path, [(x, None)], target='onnxruntime')
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    plain = onnxruntime.InferenceSession(
        path, options, providers=['CPUExecutionProvider'])
    with torch.no_grad():
        expected = model(x)
    assert_same(torch.from_numpy(plain.run(None, {'input': x.numpy()})[0]),
                expected)
    assert_same(answers(path, x), expected)
    return [node.op_type for node in ir.load(path).graph]


@given(st.integers(2, 8), st.booleans(), st.floats(-3, 3),
       st.sampled_from([None, torch.relu, nn.functional.relu6,
                        lambda x: pooled(torch.relu(x)),
                        lambda x: nn.functional.relu6(torch.relu(x))]))
def test_bounds_on_integers_are_those_in_float(tmp_path_factory, bits,
                                               symmetric, shift, bounded):
    """Any range, behind nothing, a ReLU, a ReLU6, a pooling."""
    x = 4 * torch.randn(6, 2, 4, 4) + shift
    model = Chain(*[bounded] if bounded else [], 'a', a=quantizer(
        x, bits=bits, symmetric=symmetric)).eval()
    kinds = exported(model, x, tmp_path_factory.mktemp('b') / 'model.onnx')
    assert kinds[0] == 'QuantizeLinear'
    assert kinds[-2:] == ['DequantizeLinear', 'Add']
    assert 'Relu' not in kinds


def test_a_relu_that_others_read_stays(tmp_path):
    x = torch.randn(6, 2, 4, 4)

    class Read(Chain):

        def forward(self, x):
            x = torch.relu(x)
            return self.quantizers['a'](x) + 2 * x

    model = Read(a=quantizer(x, bits=4, symmetric=True)).eval()
    assert exported(model, x, tmp_path / 'model.onnx')[0] == 'Relu'


def test_a_signed_range_is_counted_from_its_lowest(tmp_path):
    """int8 features have no kernels on x86."""
    x = torch.randn(60, 2, 4, 4)
    model = Chain('a', a=quantizer(x, bits=4, symmetric=True)).eval()
    path = tmp_path / 'model.onnx'
    exported(model, x, path)
    quantize, clip, _, _ = ir.load(path).graph
    assert quantize.inputs[2].const_value.numpy() == 8
    assert [end.const_value.numpy() for end in clip.inputs[1:]] == [0, 15]
    assert quantize.inputs[2].const_value.dtype == ir.DataType.UINT8


def test_integers_are_moved_and_not_floats(tmp_path):
    x = torch.randn(6, 2, 4, 4)
    model = Chain('a', pooled, turned, 'a', a=quantizer(x, bits=4)).eval()
    assert exported(model, x, tmp_path / 'model.onnx') == [
        'QuantizeLinear', 'Clip', 'MaxPool', 'Transpose', 'DequantizeLinear',
        'Add']


@pytest.mark.parametrize('bits', [(8, 8), (8, 4), (4, 8)])
def test_two_quantizers_in_a_row_are_both_there(bits, tmp_path):
    """onnxruntime would make them one of another step."""
    x = torch.randn(400, 2, 4, 4)
    first, second = (quantizer(scale * x, bits=each, symmetric=True)
                     for scale, each in zip((1, 20), bits))
    model = Chain('a', 'b', a=first, b=second).eval()
    kinds = exported(model, x, tmp_path / 'model.onnx')
    assert kinds.count('QuantizeLinear') == 2
    assert kinds.count('Clip') == sum(each < 8 for each in bits)


@pytest.mark.parametrize(('factor', 'bits'), [(0.3, 8), (2, 4), (20, 4)])
@pytest.mark.parametrize('symmetric', [True, False])
def test_integers_are_looked_up_where_two_quantizers_stand_in_a_row(
        factor, bits, symmetric, tmp_path):
    """All 256 of the first, by no float tensor, and halves to even."""
    x = (torch.arange(256.) - 128 * symmetric).view(4, 1, 8, 8)
    first, second = (quantizer(x, bits=each, symmetric=symmetric)
                     for each in (8, bits))
    with torch.no_grad():
        first._set_step(torch.ones(1))
        second._set_step(torch.full((1, ), float(factor)))
    model = Chain('a', 'b', a=first, b=second).eval()
    path = tmp_path / 'model.onnx'
    exported(model, x, path)
    with torch.no_grad():
        assert (answers(path, x) - model(x)).abs().max() < 1e-3
    kinds = [node.op_type for node in optimized_graph(
        path.read_bytes()).node]
    assert kinds.count('QLinearLeakyRelu') == 1
    assert kinds.count('QuantizeLinear') == 1
    assert kinds.count('DequantizeLinear') == 1


def test_a_quantizer_of_several_places_is_stored_once(tmp_path):
    x = torch.randn(40, 3, 8, 8)
    model = quantized(JointNet(), x)
    model.quantize_joints()
    path = tmp_path / 'model.onnx'
    export_onnx(model, path, [(x, None)], target='onnxruntime')
    graph = ir.load(path).graph
    steps = {node.inputs[1] for node in graph
             if node.op_type == 'QuantizeLinear'}
    # The input's, the two of the block.
    assert len(steps) == 3
    values = [float(np.ravel(step.const_value.numpy())[0]) for step in steps]
    assert len(set(values)) == 3
    assert not marks(graph, of_weights=False)


def padded(x, **options):
    return nn.functional.pad(x, (0, 0, 1, 3 - x.shape[2] % 3), **options)


def of_numbers(kinds):
    """Without what computes a width from the input's shape."""
    order = ('Tanh', 'QuantizeLinear', 'Pad', 'DequantizeLinear', 'Add')
    return [kind for kind in kinds if kind in order]


def test_zeros_around_a_tensor_are_integers(tmp_path):
    """Also where the tensor's shape says how many."""
    x = torch.randn(6, 2, 4, 4) - 1
    model = Chain(torch.tanh, padded, 'a', a=quantizer(x, bits=8)).eval()
    assert of_numbers(exported(model, x, tmp_path / 'model.onnx')) == [
        'Tanh', 'QuantizeLinear', 'Pad', 'DequantizeLinear', 'Add']
    again = traced(Chain('a', padded, 'a', a=model.quantizers['a']), x,
                   ONNXRUNTIME)
    assert again.count('FakeQuantize') == 1


@pytest.mark.parametrize('options', [dict(value=1.0), dict(mode='reflect')])
def test_other_values_around_a_tensor_are_quantized(options, tmp_path):
    x = torch.randn(6, 2, 4, 4) - 1
    model = Chain(torch.tanh, partial(padded, **options), 'a',
                  a=quantizer(x, bits=8)).eval()
    assert of_numbers(exported(model, x, tmp_path / 'model.onnx')) == [
        'Tanh', 'Pad', 'QuantizeLinear', 'DequantizeLinear', 'Add']
