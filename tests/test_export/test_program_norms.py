"""Batch norms go into steps and biases; integers stay."""

import pytest
import torch
from exported_models import batch_norm, quantized
from torch import nn

from fpq_plugin.export.program import HAS_EXPORT, build_program

pytestmark = pytest.mark.skipif(
    not HAS_EXPORT, reason='this torch has no torch.export that can be told')


def operators(program):
    return [str(node.target) for node in program.graph.nodes
            if node.op == 'call_function']


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('build', 'shape'), [
    (nn.Conv1d, (9, )), (nn.Conv2d, (6, 6)), (nn.Conv3d, (4, 4, 4))])
def test_a_batch_norm_is_in_the_steps(build, shape, bias):
    """With gains of any sign, and a zero; in float64, as a reference."""
    generator = torch.Generator().manual_seed(0)
    norm = batch_norm(8, generator)
    if len(shape) != 2:
        other = (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm3d)(8)
        other.load_state_dict(norm.state_dict())
        norm = other
    x = torch.randn(5, 3, *shape, generator=generator)
    model = quantized(nn.Sequential(build(3, 8, 3, bias=bias), norm,
                                    nn.ReLU()), x,
                      weight=dict(bits=4), activation=dict(bits=4),
                      first_last_bits=None)
    program = build_program(model, x)
    assert not any('batch_norm' in name for name in operators(program))
    assert not any(name.startswith('1.') for name in program.state_dict)
    conv = model[0]
    # On the grid no value is between two integers.
    x = conv.input_quantizer(x).detach()
    answer = program.module()(x)
    weight = conv.weight_quantizer(conv.weight).double()
    conv, ready, features = conv.double(), norm.double(), x.double()
    gain = ready.weight / (ready.running_var + ready.eps).sqrt()
    kernel = (nn.functional.conv1d, nn.functional.conv2d,
              nn.functional.conv3d)[len(shape) - 1]
    wide = (-1, *[1] * len(shape))
    wanted = (kernel(features, weight, conv.bias) - ready.running_mean.view(
        wide)) * gain.view(wide) + ready.bias.view(wide)
    torch.testing.assert_close(answer, wanted.relu().float(), rtol=1e-4,
                               atol=1e-5)
    stored = program.state_dict['0.weight_quantizer.integers']
    assert stored.dtype == torch.int8
    assert not stored[0].any()


def test_without_gain_and_offset():
    x = torch.randn(5, 3, 6, 6)
    norm = nn.BatchNorm2d(4, affine=False)
    norm.running_mean.copy_(torch.randn(4))
    model = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), norm), x)
    program = build_program(model, x)
    assert not any('batch_norm' in name for name in operators(program))
    torch.testing.assert_close(program.module()(x), model(x))


class Twice(nn.Module):
    """A convolution's output, or its weight, is used beside the norm."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class Shared(Twice):

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv(2 * x)


def least_weight(model):
    """An 8-bit weight of -128 in a channel with a negative gain."""
    quantizer = model.conv.weight_quantizer
    with torch.no_grad():
        model.conv.weight[:, 0, 0, 0] = -1e3
        model.norm.weight.fill_(-1)
    assert (quantizer(model.conv.weight) / quantizer.step().view(
        -1, 1, 1, 1)).min().round() == -128
    return model


class Plain(Twice):

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize(('build', 'change'), [
    (Twice, None), (Shared, None), (Plain, least_weight)])
def test_what_is_not_exact_is_left(build, change):
    x = torch.randn(5, 3, 6, 6)
    model = quantized(build(batch_norm(4, torch.Generator().manual_seed(0))),
                      x, weight=dict(bits=8))
    if change is not None:
        model = change(model)
    program = build_program(model, x)
    assert any('batch_norm' in name for name in operators(program))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4,
                               atol=1e-4)
