"""A layer's outputs against torch's own statistics and quantization."""

import copy
import math

import pytest
import torch
from torch import nn

import fpq_plugin
from fpq_plugin.analysis import (
    PlainBatch,
    channel_ranges,
    feature_histograms,
    layer_sqnr,
)


def test_sqnr_is_that_of_torchs_own_fake_quantization():
    layer = nn.Linear(32, 8)
    model = nn.Sequential(layer)
    batches = [
        PlainBatch(torch.rand(16, 32), torch.zeros(16)) for _ in range(2)
    ]
    fpq_plugin.convert(model, first_last_bits=None)
    fpq_plugin.calibrate(model, [b.inputs for b in batches])
    x = torch.cat([b.inputs for b in batches])
    act, w = layer.input_quantizer, layer.weight_quantizer
    x_hat = torch.fake_quantize_per_tensor_affine(
        x, float(act.step()), int(act.zero_point), 0, 15)
    w_hat = torch.fake_quantize_per_channel_affine(
        layer.weight, w.step(), w.zero_point, 0, -8, 7)
    found = layer_sqnr(model, batches)['0']
    linear = nn.functional.linear
    for value, exact, quantized in (
        (found.weight, layer.weight, w_hat), (found.input, x, x_hat),
        (found.output, linear(x, layer.weight, layer.bias),
         linear(x_hat, w_hat, layer.bias))):
        with torch.no_grad():
            ratio = exact.square().sum() / (exact - quantized).square().sum()
        assert math.isclose(value, 10 * ratio.log10(), rel_tol=1e-3)
    assert 10 < found.weight < 40
    assert layer_sqnr(nn.Sequential(nn.Linear(32, 8)), batches) == {}


def test_channels_and_histograms_are_those_of_the_layers_output():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(3 * 36, 2))
    batches = [
        PlainBatch(torch.randn(n, 1, 8, 8), torch.zeros(n)) for n in (4, 3)
    ]
    out = torch.cat([model[0](b.inputs) for b in batches]).detach()
    found = channel_ranges(model, batches, '0')
    torch.testing.assert_close(found.low, out.amin((0, 2, 3)))
    torch.testing.assert_close(found.high, out.amax((0, 2, 3)))
    torch.testing.assert_close(found.mean, out.mean((0, 2, 3)))
    histograms = feature_histograms(dict(a=model), dict(a=batches), '0')
    edges = histograms.edges
    exact = torch.histogram(out.flatten().double(), edges)[0] / out.numel()
    width = edges[1] - edges[0]
    torch.testing.assert_close(histograms.densities['a'] * width, exact)
    assert 0.995 < exact.sum() <= 1


@pytest.mark.parametrize(('layer', 'shape', 'axis'), [
    (nn.Conv1d(2, 3, 3), (2, 9), 1),
    (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 1),
    (nn.ConvTranspose2d(2, 3, 3), (2, 5, 6), 1),
    (nn.Linear(4, 3), (7, 4), -1),
], ids=str)
@pytest.mark.parametrize('quantize', [False, True])
def test_channels_are_those_of_any_layer(layer, shape, axis, quantize):
    model = nn.Sequential(copy.deepcopy(layer))
    x = torch.randn(5, *shape)
    if quantize:
        fpq_plugin.convert(model)
        fpq_plugin.calibrate(model, [x])
    found = channel_ranges(model, [PlainBatch(x, torch.zeros(5))], '0')
    out = model.eval()(x).detach().movedim(axis, 0).flatten(1)
    torch.testing.assert_close(found.low, out.amin(1))
    torch.testing.assert_close(found.high, out.amax(1))


def test_a_layer_that_is_not_called_is_told():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].unused = nn.Linear(2, 2)
    batch = PlainBatch(torch.randn(2, 2), torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"not call the layer '0\.unused'"):
        channel_ranges(model, [batch], '0.unused')
