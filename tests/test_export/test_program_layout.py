"""Quantizers go where layers are found, ranges stay; no value changes."""

from collections import Counter

import pytest
import torch
from exported_models import net, quantized
from torch import nn
from torch.nn import functional as F

from fpq_plugin import add_joints, calibrate, convert
from fpq_plugin.export.program import (
    HAS_EXPORT,
    build_program,
    moved_weights,
    require_operators,
)
from fpq_plugin.export.program_layout import lay_out
from fpq_plugin.targets import EXECUTORCH, STANDARD

pytestmark = pytest.mark.skipif(
    not HAS_EXPORT, reason='this torch has no torch.export that can be told')


@pytest.fixture
def x():
    return torch.randn(6, 3, 8, 8)


def fake(x, step, zero, low=-128, high=127):
    ops = require_operators()
    numbers = step, zero, low, high, torch.int8
    return ops.dequantize_per_tensor(
        ops.quantize_per_tensor(x, *numbers), *numbers)


class Of(nn.Module):

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def laid_out(function, x):
    """Names of a function's operations, once its answers are the same."""
    model = Of(function)
    graph = torch.export.export(model, (x, )).run_decompositions({}).module()
    lay_out(graph)
    torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)
    for node in graph.graph.nodes:
        if 'quantize_per_tensor' in str(node.target):
            assert node.args[3:5] == (-128, 127)
    return [str(node.target).split('.')[1] for node in graph.graph.nodes
            if node.op == 'call_function']


Q, DQ = 'quantize_per_tensor', 'dequantize_per_tensor'


def test_a_quantizer_goes_before_what_moves_values(x):
    require_operators()
    assert laid_out(lambda x: fake(F.max_pool2d(torch.relu(x), 2).flatten(1),
                                   0.01, -128), x) == [
        'relu', Q, DQ, 'max_pool2d', Q, DQ, 'view', Q, DQ]
    # What was quantized otherwise, too: an engine moves one step's integers.
    assert laid_out(lambda x: fake(fake(x, 0.1, 0)[:, 1:], 0.3, 1), x) == [
        Q, DQ, Q, DQ, 'slice', Q, DQ]
    # Another reads it in float: there it stays.
    assert laid_out(lambda x: (lambda y: fake(y, 0.1, 0) + y)(
        F.max_pool2d(x, 2)), x) == ['max_pool2d', Q, DQ, 'add']


def test_what_is_quantized_alike_is_quantized_once(x):
    require_operators()
    assert laid_out(lambda x: fake(fake(x, 0.1, 0), 0.1, 0), x) == [Q, DQ]
    # Each reader has its own: an engine merges it with one of them.
    assert Counter(laid_out(lambda x: torch.cat(
        [fake(x, 0.1, 0).sin(), fake(x, 0.1, 0).cos()]), x)) == {
            Q: 1, DQ: 2, 'sin': 1, 'cos': 1, 'cat': 1}
    assert laid_out(lambda x: fake(fake(x, 0.1, 0), 0.2, 0), x) == [
        Q, DQ, Q, DQ]


def test_operands_of_a_concatenation_are_quantized_as_it(x):
    """XNNPACK has one step for all of them, and loads no other program."""
    require_operators()

    def function(x):
        return fake(torch.cat([fake(x, 0.1, 0), fake(x.sin(), 0.02, 3),
                               fake(x, 0.05, 2)], 1), 0.05, 2)

    graph = torch.export.export(Of(function), (x, )).run_decompositions(
        {}).module()
    lay_out(graph)
    cat, = [node for node in graph.graph.nodes if 'cat' in str(node.target)]
    result, = cat.users
    assert {each.args[1:] for each in cat.args[0]} == {result.args[1:]}
    found = laid_out(function, x)
    assert (found.count(Q), found.count(DQ)) == (6, 6)  # two more of each
    # Read in float it stays as it is.
    assert laid_out(lambda x: torch.cat(
        [fake(x, 0.1, 0), fake(x.sin(), 0.02, 3)]) + 1, x) == [
            Q, DQ, 'sin', Q, DQ, 'cat', 'add']


@pytest.mark.parametrize(('before', 'low', 'added'), [
    # The end of the type is above, and a ReLU's zero is below.
    (torch.relu, 0, []),
    (F.relu6, 0, []),
    (lambda x: F.max_pool2d(torch.relu(x), 2), 0, []),
    (lambda x: F.adaptive_avg_pool2d(torch.relu(x), 1), 0, []),
    (lambda x: fake(torch.relu(x), 0.01, -128), 0, []),
    (lambda x: fake(x, 0.01, -128), 0, []),
    # A layer does a clamp; what else there is ends in int8 before it.
    (lambda x: F.conv2d(x, torch.ones(2, 3, 1, 1)), 0, ['hardtanh']),
    (lambda x: F.conv2d(x, torch.ones(2, 3, 1, 1)), -8, ['hardtanh']),
    (lambda x: fake(x, 0.03, 0), 0, ['hardtanh']),
    (torch.relu, 3, [Q, DQ, 'hardtanh']),
    (lambda x: x + x, 0, [Q, DQ, 'hardtanh']),
    (lambda x: F.adaptive_avg_pool2d(x, 1), -8, [Q, DQ, 'hardtanh']),
])
def test_narrow_ranges_are_kept(before, low, added, x):
    require_operators()
    plain = laid_out(lambda x: fake(before(x), 0.2, 0), x)
    found = laid_out(lambda x: fake(before(x), 0.2, 0, low, low + 15), x)
    assert Counter(found) - Counter(plain) == Counter(added)


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_a_model_keeps_its_answers(bits, x):
    model = quantized(net(), x, weight=dict(bits=bits),
                      activation=dict(bits=bits), first_last_bits=None)
    program = build_program(model, x, target=EXECUTORCH)
    # A weight of -128 is another one.
    torch.testing.assert_close(program.module()(x), model(x), rtol=0,
                               atol=2e-2 if bits == 8 else 1e-5)
    stored = [value for name, value in program.state_dict.items()
              if name.endswith('.integers')]
    # The last one's result is not quantized, so XNNPACK has it in float.
    assert len(stored) == 3
    assert '7.weight_quantizer.floats' in program.state_dict
    for integers in stored:
        assert integers.min() >= -127
        # Few bits fill the type, and leave one for sums in 16 bits.
        assert integers.abs().max() > 32
    bounds = {node.args[-3:] for node in program.graph.nodes
              if 'quantize_per_' in str(node.target)}
    assert bounds == {(-128, 127, torch.int8)}


def test_the_lowest_weights_are_moved_and_counted(x):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    nn.init.constant_(model[2].weight, 1.0)
    quantized(model, x, weight=dict(bits=8))
    quantizer = model[0].weight_quantizer
    with torch.no_grad():
        step = quantizer.step().flatten()[0]
        model[0].weight[0].fill_(float(-200 * step))
        model[0].weight[1].fill_(0)
    assert moved_weights(model, x, EXECUTORCH) == 3
    assert moved_weights(model, x, STANDARD) == 0
    program = build_program(model, x, target=EXECUTORCH)
    integers = program.state_dict['0.weight_quantizer.integers']
    assert integers.flatten().tolist() == 3 * [-127] + 3 * [0]


def test_weights_around_another_zero_are_refused(x):
    model = quantized(nn.Sequential(nn.Conv2d(3, 2, 1)), x,
                      weight=dict(bits=8, symmetric=False))
    with pytest.raises(ValueError, match=r'0\.weight_quantizer: ExecuTorch '
                       'takes weights around 0 alone.*symmetric=True'):
        build_program(model, x, target=EXECUTORCH)


def test_joints_of_the_target_end_layers_in_quantizers(x):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 2))
    convert(model)
    table = add_joints(model, x, target='executorch')
    assert [(row.name, row.why) for row in table] == [
        ('1.output', 'avg_pool'), ('4.output', 'end of linear')]
    calibrate(model, [x])
    model.eval()
    program = build_program(model, x, 2, target=EXECUTORCH)
    names = [str(node.target).split('.')[1] for node in program.graph.nodes
             if node.op == 'call_function']
    assert names == [
        Q, DQ, 'dequantize_per_channel', 'conv2d', 'relu', Q, DQ,
        'adaptive_avg_pool2d', Q, DQ, 'view', Q, DQ,
        'dequantize_per_channel', 'linear', Q, DQ]


def test_a_layer_in_float_has_a_float_weight(x):
    model = quantized(nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Sigmoid()), x,
        weight=dict(bits=4), activation=dict(bits=4), first_last_bits=None)
    program = build_program(model, x, 2, target=EXECUTORCH)
    stored = program.state_dict
    assert stored['0.weight_quantizer.integers'].dtype == torch.int8
    assert '2.weight_quantizer.integers' not in stored
    torch.testing.assert_close(stored['2.weight_quantizer.floats'],
                               model[2].weight_quantizer(model[2].weight))
    torch.testing.assert_close(program.module()(x[:2]), model(x[:2]), rtol=0,
                               atol=1e-5)
