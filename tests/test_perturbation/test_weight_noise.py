"""Weight noise: of the weight's step, in training alone, not on features."""

import pytest
import torch
from torch import nn

from fpq_plugin import calibrate, convert


def quantized(p=1.0, **options):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3))
    convert(
        model,
        weight=dict(bits=2),
        perturbation=dict(
            type='StochasticWeightPerturbation', p=p, **options))
    calibrate(model, [torch.randn(4, 2, 8, 8)])
    return model


def weights_of(layer):
    """Quantized weight as the operation gets it, and without noise."""
    seen = []
    layer.op = lambda x, weight: seen.append(weight) or x
    layer(torch.randn(2, 2, 8, 8))
    del layer.op
    return seen[0], layer.weight_quantizer(layer.weight)


def test_noise_is_uniform_of_each_channels_step():
    layer = quantized()[0]
    noisy, clean = weights_of(layer)
    step = layer.weight_quantizer.step().view(-1, 1, 1, 1)
    noise = ((noisy - clean) / step).detach()
    assert noise.abs().max() <= 0.5 + 1e-4
    assert noise.abs().amax((1, 2, 3)).min() > 0.3
    assert noise.std().item() == pytest.approx(12**-0.5, rel=0.3)


@pytest.mark.parametrize('part', ['eval', 'p=0'])
def test_no_noise_in_eval_mode_or_without_chance(part):
    layer = quantized(p=0.0 if part == 'p=0' else 1.0)[0]
    noisy, clean = weights_of(layer.train(part != 'eval'))
    assert torch.equal(noisy, clean)


def test_features_have_none():
    layer = quantized()[0]
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(layer.quantized_input(x), layer.input_quantizer(x))


def test_gradients_pass():
    model = quantized(where='before')
    model(torch.randn(2, 2, 8, 8)).sum().backward()
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_brevitas_layers_refuse_it():
    pytest.importorskip('brevitas')
    with pytest.raises(ValueError, match="backend='torch_ao'"):
        convert(
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
            backend='brevitas',
            perturbation=dict(type='StochasticWeightPerturbation'))


def test_brevitas_layers_refuse_grids_without_an_integer_zero_point():
    pytest.importorskip('brevitas')
    with pytest.raises(ValueError, match='integer zero point'):
        convert(
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
            backend='brevitas',
            activation=dict(type='LSQPlusFakeQuantize'))


def test_transposed_convolutions_have_their_channels_on_another_axis():
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 3, 3), nn.ConvTranspose2d(3, 4, 3))
    convert(
        model,
        weight=dict(bits=2),
        perturbation=dict(type='StochasticWeightPerturbation', p=1.0))
    calibrate(model, [torch.randn(4, 2, 8, 8)])
    layer = model[0]
    clean = layer.weight_quantizer(layer.weight)
    noise = (layer.quantized_weight(layer.weight) - clean).abs()
    step = layer.weight_quantizer.step()
    assert step.shape == (3, )
    assert (noise.amax((0, 2, 3)) / step).max() <= 0.5 + 1e-4
    assert (noise.amax((0, 2, 3)) / step).min() > 0.3
