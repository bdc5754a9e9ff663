"""Gradient and output under noise against closed forms; the noise itself."""

import math

import pytest
import torch
from exact_hessian import small_batches, small_net
from torch import nn

import fpq_plugin
from fpq_plugin.analysis import (
    PlainBatch,
    noise_gradient_norm,
    output_variance,
)
from fpq_plugin.analysis.measuring import weighted_layers
from fpq_plugin.analysis.stability import (
    feature_steps,
    noisy_features,
    noisy_weights,
    weight_steps,
)


def test_variance_of_a_linear_model_is_its_closed_form():
    # Var(W e) = sigma^2 |w_j|^2, the mean over the outputs j.
    model = nn.Linear(6, 4).double()
    batch = PlainBatch(torch.randn(400, 6).double(), torch.zeros(400))
    found = output_variance(model, [batch], [0.1, 2.0], draws=40)
    rows = float(model.weight.square().sum(1).mean())
    for sigma, variance in zip(found.sigmas, found.variances):
        assert abs(variance.value - sigma**2 * rows) < 4 * variance.error
        assert variance.error < 0.02 * variance.value
    exact = model(batch.inputs).var(0).mean()
    assert math.isclose(found.clean, exact, rel_tol=1e-9)


@pytest.mark.parametrize('bits', [None, 4])
def test_gradient_norm_of_a_linear_model_is_its_closed_form(bits):
    # Loss mean((x w)^2) of one sample and one output: the gradient is
    # 2 (x.w) x, so noise d on x gives 2 |(x + d).w| |x + d|; x without the
    # places where the weight is clipped.
    model = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    x = torch.randn(1, 5).double()
    if bits:
        fpq_plugin.convert(model, first_last_bits=None)
        fpq_plugin.calibrate(model, [x])
    batch = PlainBatch(x, torch.zeros(1, 1).double(), nn.functional.mse_loss)
    layers = weighted_layers(model)
    step = float(feature_steps(model, layers, [batch])['0'])
    layer = model[0]
    with torch.no_grad():
        layer.weight[0, 2] = 0.9
    weight_step = weight_steps(layers)['0']
    weight = layer.weight.detach()
    passes = torch.ones(1, 5).double()
    if bits:
        steps = (weight / weight_step).round()
        passes = ((steps >= -8) & (steps <= 7)).double()
        assert math.isclose(step, float(layer.input_quantizer.step()))
        x, weight = layer.input_quantizer(x), layer.weight_quantizer(weight)
    else:
        assert math.isclose(step, float(x.max() - x.min()) / 15)
        assert math.isclose(float(weight_step),
                            2 * float(weight.abs().max()) / 15)

    def norms(x, weight):
        return 2 * (x * weight).sum(1).abs() * (x * passes).norm(dim=1)

    with torch.no_grad():
        noise = torch.rand(20000, 5).double() - 0.5
        features = norms(x + noise * step, weight)
        weights = norms(x, weight + noise * weight_step)
        clean = norms(x, weight)
    found = noise_gradient_norm(model, [batch], draws=400)
    assert math.isclose(found.clean, float(clean), rel_tol=1e-6)
    for ours, exact in ((found.feature, features), (found.weight, weights)):
        assert ours.error > 0
        assert abs(ours.value - exact.mean()) < 4 * ours.error
    square = ((x * weight).sum()**2, ((x + noise * step) * weight),
              (x * (weight + noise * weight_step)))
    assert math.isclose(found.clean_loss, float(square[0]))
    for ours, terms in ((found.feature_loss, square[1]),
                        (found.weight_loss, square[2])):
        exact = terms.sum(1).square().mean()
        assert abs(ours.value - exact) < 4 * ours.error


def test_noise_is_on_the_layers_that_were_named():
    model, batches = small_net(True), small_batches()
    everywhere = noise_gradient_norm(model, batches, 4)
    head = noise_gradient_norm(model, batches, 4, layers=['6'])
    assert head.clean != everywhere.clean
    assert head.feature.error < everywhere.feature.error


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
