"""Quantizers are torch's quantized_decomposed operators in a program."""

import pytest
import torch
from exported_models import net, quantized
from torch import nn

from fpq_plugin import add_joints, calibrate, convert
from fpq_plugin.export import program as programs
from fpq_plugin.export.program import HAS_EXPORT, build_program
from fpq_plugin.joints.biases import unround_bias

pytestmark = pytest.mark.skipif(
    not HAS_EXPORT, reason='this torch has no torch.export that can be told')


@pytest.fixture
def x():
    return torch.randn(9, 3, 8, 8)


def test_weights_are_integers_and_nothing_else_of_them_is_there(x):
    model = quantized(net(), x)
    program = build_program(model, x)
    integers = {name: value for name, value in program.state_dict.items()
                if value.dtype == torch.int8}
    for layer in ('0', '3', '5', '7'):
        quantizer = model[int(layer)].weight_quantizer
        stored = integers.pop(f'{layer}.weight_quantizer.integers')
        steps = program.state_dict[f'{layer}.weight_quantizer.steps']
        assert f'{layer}.weight' not in program.state_dict
        shape = (-1, ) + (1, ) * (stored.dim() - 1)
        torch.testing.assert_close(
            stored * steps.view(shape), quantizer(model[int(layer)].weight))
        low, high = quantizer.quant_min, quantizer.quant_max
        assert low <= stored.min() < stored.max() <= high
    assert not integers
    names = [str(node.target) for node in program.graph.nodes
             if 'quantized_decomposed' in str(node.target)]
    assert sorted(set(names)) == [
        'quantized_decomposed.dequantize_per_channel.default',
        'quantized_decomposed.dequantize_per_tensor.default',
        'quantized_decomposed.quantize_per_tensor.default']
    assert len(names) == 4 * 3
    # Features of 8 bits, 0 to 255 in FPQ, are int8 as well.
    assert {node.args[-3:] for node in program.graph.nodes
            if 'quantize_per_tensor' in str(node.target)} == {
                (0, 15, torch.int8), (-128, 127, torch.int8)}


@pytest.mark.parametrize('quantizer', [
    dict(type='LSQFakeQuantize', per_channel=False),
    dict(type='TorchAOFakeQuantize')], ids=lambda cfg: cfg['type'])
def test_other_weights_are_integers_as_well(quantizer, x):
    model = quantized(net(), x, weight=dict(quantizer, bits=4))
    program = build_program(model, x)
    torch.testing.assert_close(program.module()(x), model(x), rtol=0,
                               atol=1e-5)


def test_a_torch_without_the_operators_is_named(x, monkeypatch):
    model = quantized(net(), x)
    for name in ('HAS_EXPORT', 'HAS_TORCH_AO'):
        with monkeypatch.context() as patch:
            patch.setattr(programs, name, False)
            with pytest.raises(ValueError, match='torch>=2.7 .* is torch'):
                build_program(model, x)


@pytest.mark.parametrize('target', ['onnxruntime', 'executorch'])
@pytest.mark.parametrize('bits', [4, 8])
def test_rounded_biases_are_the_programs_own(bits, target, x):
    """Those of a batch norm, of a convolution and of a linear layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 5))
    model(x)
    convert(model, weight=dict(bits=bits), activation=dict(bits=bits),
            first_last_bits=None)
    add_joints(model, x, target=target)
    calibrate(model, [x])
    model.eval()
    with torch.no_grad():
        wanted = model(x)
        biases = [p.clone() for p in model.parameters()]
        found = build_program(model, x).module()(x)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        for own, other in zip(biases, model.parameters()):
            assert torch.equal(own, other)
        # Float biases are others.
        for module in model.modules():
            unround_bias(module)
        assert (model(x) - wanted).abs().max() > 1e-4
