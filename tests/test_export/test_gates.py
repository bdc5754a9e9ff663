"""Gates in onnxruntime: equal answers, from kernels on integers."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exported_models import answers, assert_same
from torch import nn

from fpq_plugin import add_joints, calibrate, convert
from fpq_plugin.export import export_onnx
from fpq_plugin.export.gates import lower_gates
from fpq_plugin.export.kernels import optimized_graph


@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize(('act', 'kernels'), [
    (nn.SiLU, dict(QLinearMul=1, QLinearSigmoid=1)),
    (nn.Hardswish, dict(QLinearMul=1, QLinearAdd=1))])
def test_a_model(act, kernels, bits, tmp_path):
    """Without biases, which are rounded, the answers are equal."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), act(), nn.Conv2d(8, 8, 3, bias=False),
        nn.Flatten(), nn.Linear(8 * 16, 5, bias=False))
    x = 3 * torch.randn(40, 3, 8, 8)
    convert(model, weight=dict(bits=bits), activation=dict(bits=bits))
    add_joints(model, x)
    calibrate(model.eval(), [x])
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], target='onnxruntime')
    assert report.kernels.on_integers() == 3
    assert dict(report.kernels.others).items() >= kernels.items()
    found = Counter(
        node.op_type for node in optimized_graph(path.read_bytes()).node)
    assert not {'Sigmoid', 'HardSigmoid', 'Mul', 'Add'} & found.keys()
    with torch.no_grad():
        assert_same(answers(path, x), model(x))


def gate(step, zero_point, out='0.003921569', alpha='0.16666667'):
    """A hard sigmoid between integers, as a finished graph has it."""
    return ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": 17]>
        gate (uint8[256] input) => (float[256] output)
        <float step = {{{step}}}, uint8 zero_point = {{{zero_point}}},
         float third = {{{out}}}, uint8 zero = {{0}}>
        {{
            x = DequantizeLinear(input, step, zero_point)
            g = HardSigmoid<alpha = {alpha}, beta = 0.5>(x)
            q = QuantizeLinear(g, third, zero)
            y = DequantizeLinear(q, third, zero)
            output = Mul(x, y)
        }}""")


def run(model, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options,
        providers=['CPUExecutionProvider'])
    return session.run(None, {'input': np.arange(256, dtype=np.uint8)})[0]


@pytest.mark.parametrize('level', [
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL])
@pytest.mark.parametrize(('step', 'zero_point'), [
    (0.0173, 0), (0.0311, 128), (0.2137, 77), (0.0471, 255), (3.1e-5, 3)])
@pytest.mark.parametrize('alpha', ['0.16666667', '0.2'])
def test_the_sum_has_the_same_values(step, zero_point, alpha, level):
    """Of all inputs there are."""
    model = gate(step, zero_point, alpha=alpha)
    wanted = run(model, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    lower_gates(model.graph)
    assert 'HardSigmoid' not in [node.op_type for node in model.graph]
    assert np.array_equal(run(model, level), wanted)


def test_of_another_step_it_stays():
    """Where uint8 does not end at 1, the sum would not be clipped there."""
    model = gate(0.03, 128, out='0.003')
    lower_gates(model.graph)
    assert 'HardSigmoid' in [node.op_type for node in model.graph]


def test_of_a_float_it_stays():
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["": 17]>
        gate (float[4] input) => (uint8[4] output)
        <float step = {0.003921569}, uint8 zero = {0}>
        {
            g = HardSigmoid<alpha = 0.16666667, beta = 0.5>(input)
            output = QuantizeLinear(g, step, zero)
        }""")
    lower_gates(model.graph)
    assert 'HardSigmoid' in [node.op_type for node in model.graph]
