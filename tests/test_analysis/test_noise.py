"""Steps of the noise, and where it goes."""

import pytest
import torch
from torch import nn

import fpq_plugin
from fpq_plugin.analysis import PlainBatch
from fpq_plugin.analysis.stability import (
    feature_steps,
    noisy_features,
    noisy_weights,
    weight_steps,
)


def test_weight_steps_are_along_the_output_channels():
    layer = nn.ConvTranspose2d(2, 3, 3)
    steps = weight_steps(dict(up=layer))['up']
    wanted = [2 * layer.weight[:, c].abs().max() / 15 for c in range(3)]
    torch.testing.assert_close(
        steps, torch.stack(wanted).detach().view(1, 3, 1, 1))
    model = nn.Sequential(layer)
    fpq_plugin.convert(model, first_last_bits=None)
    fpq_plugin.calibrate(model, [torch.randn(4, 2, 5, 5)])
    steps = weight_steps(dict(up=layer))['up']
    torch.testing.assert_close(
        steps, layer.weight_quantizer.step().view(1, 3, 1, 1))


def one_linear(quantized):
    """A layer that gives back its input, and its data."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(64))
    x = torch.rand(32, 64)
    if quantized:
        fpq_plugin.convert(model, first_last_bits=None)
        fpq_plugin.calibrate(model, [x])
    return model.eval(), x


@pytest.mark.parametrize('quantized', [False, True])
def test_feature_noise_is_uniform_in_a_step(quantized):
    model, x = one_linear(quantized)
    layers = {'0': model[0]}
    batch = PlainBatch(x, torch.zeros(32))
    steps = feature_steps(model, layers, [batch])
    step = float(steps['0'])
    clean = model(x)
    with noisy_features(layers, steps):
        noise = (model(x) - clean).detach()
    scale = float(model[0].weight_quantizer(model[0].weight)[0, 0]
                  ) if quantized else 1.0
    noise = noise / scale
    assert noise.abs().max() <= step / 2 * 1.001
    # The variance of a uniform is a twelfth of its width squared.
    assert float(noise.var()) == pytest.approx(step**2 / 12, rel=0.1)
    torch.testing.assert_close(model(x), clean)


@pytest.mark.parametrize('quantized', [False, True])
def test_weight_noise_is_uniform_in_a_step(quantized):
    model, x = one_linear(quantized)
    layers = {'0': model[0]}
    steps = weight_steps(layers)
    before = model[0].weight.detach().clone()
    clean = model(x)
    # An input of ones in one channel, so that the output is that weight row.
    eye = torch.eye(64)
    without = model(eye)
    with noisy_weights(layers, steps):
        noise = (model(eye) - without).detach().T
    step = steps['0']
    scale = float(model[0].input_quantizer(eye)[0, 0]) if quantized else 1.0
    assert (noise.abs() <= step / 2 * 1.001 * scale).all()
    assert float((noise / step / scale).var()) == pytest.approx(
        1 / 12, rel=0.1)
    assert torch.equal(model[0].weight, before)
    torch.testing.assert_close(model(x), clean)
