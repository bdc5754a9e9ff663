"""Layers that compute their weight: norms, parametrizations, masks."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import fpq_plugin
from fpq_plugin import (
    CSDLoss,
    Distiller,
    calibrate,
    param_groups,
    to_float,
)
from fpq_plugin.layers import copy_module
from fpq_plugin.openmmlab.teacher import copy_float
from fpq_plugin.state import float_state, load_exactly


@pytest.fixture
def convert(backend):
    return functools.partial(
        fpq_plugin.convert, first_last_bits=None, backend=backend)


class Halved(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, weight):
        return weight / 2


def halved(layer):
    parametrize.register_parametrization(layer, 'weight', Halved())
    return layer


def pruned(layer):
    prune.random_unstructured(layer, 'weight', 0.5)
    return layer


MAKE = {
    'weight_norm': nn.utils.weight_norm,
    'spectral_norm': nn.utils.spectral_norm,
    'pruned': pruned,
    'new_weight_norm': parametrizations.weight_norm,
    'new_spectral_norm': parametrizations.spectral_norm,
    'orthogonal': parametrizations.orthogonal,
    'halved': halved,
}
UNDO = {
    'weight_norm': nn.utils.remove_weight_norm,
    'spectral_norm': nn.utils.remove_spectral_norm,
    'pruned': lambda layer: prune.remove(layer, 'weight'),
}


class Doubled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return super().forward(2 * x)


LAYERS = {
    'conv': (lambda: nn.Conv2d(3, 6, 3), (3, 7, 7)),
    'own_forward': (lambda: Doubled(3, 6, 3), (3, 7, 7)),
    'transpose': (lambda: nn.ConvTranspose2d(3, 6, 3), (3, 7, 7)),
    'linear': (lambda: nn.Linear(5, 6), (5, )),
}


@pytest.fixture(params=MAKE)
def kind(request):
    return request.param


@pytest.fixture(params=LAYERS)
def case(request, kind):
    make, shape = LAYERS[request.param]
    return nn.Sequential(MAKE[kind](make())), torch.randn(8, *shape)


def values(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def are_equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one)


def test_at_8_bits_they_are_nearly_the_float_layers(convert, case):
    model, x = case
    model.eval()
    with torch.no_grad():
        expected = model(x)
    kind, before = type(model[0]), values(model)
    table = convert(model, weight=dict(bits=8), activation=dict(bits=8))
    assert [(r.name, r.weight_bits) for r in table] == [('0', 8)]
    calibrate(model, [x])
    out = model(x)
    assert not torch.equal(out, expected)
    assert (out - expected).abs().max() < 0.02 * expected.abs().max()
    to_float(model)
    assert type(model[0]) is kind
    assert are_equal(values(model), before)
    assert torch.equal(model(x), expected)


def test_steps_are_those_of_the_weight_that_is_used(convert, case):
    """A weight that was loaded after convert, too."""
    model, x = case
    convert(model)
    loaded = {
        key: 10 * value if value.dim() > 1 and value.is_floating_point() and
        not key.endswith('_mask') else value
        for key, value in float_state(model).items()
    }
    model.load_state_dict(loaded, strict=False)
    calibrate(model, [x])
    layer = model.eval()[0]
    with torch.no_grad():
        model(x)
        used = layer.weight.movedim(layer.weight_axis, 0).flatten(1)
    reach = layer.weight_quantizer.step() * 7.5
    torch.testing.assert_close(used.abs().amax(1), reach)


def test_converting_in_training_mode_leaves_the_state(convert, case):
    model, _ = case
    before = values(model.train())
    convert(model)
    assert are_equal(float_state(model), before)
    to_float(model)
    assert are_equal(values(model), before)


def test_every_step_and_parameter_is_trained(convert, case):
    model, x = case
    convert(model)
    calibrate(model, [x])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(param_groups(model, lr=0.1), lr=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).pow(4).mean().backward()
        optimizer.step()
    still = [n for n, p in model.named_parameters()
             if torch.equal(p, before[n])]
    assert not still


def test_frozen_ones_have_frozen_steps(convert, case):
    model, _ = case
    model.requires_grad_(False)
    convert(model)
    assert not any(p.requires_grad for p in model.parameters())


def test_copies_answer_alike_and_are_independent(convert, case):
    model, x = case
    convert(model)
    calibrate(model, [x])
    model.train()(x)
    model.eval()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    state = values(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert are_equal(values(model), state)
    model.load_state_dict(twin.state_dict())
    assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize('converted', [False, True])
def test_a_teacher_is_copied_after_a_forward(convert, case, converted):
    model, x = case
    model.train()(x)
    if converted:
        convert(model)
    teacher = copy_float(model).eval()
    assert not any(p.requires_grad for p in teacher.parameters())
    load_exactly(teacher, float_state(model))
    assert torch.equal(to_float(copy_module(model)).eval()(x), teacher(x))
    if not converted:
        convert(model)
    calibrate(model, [x])
    distiller = Distiller(model, teacher, CSDLoss())
    model.train()(x)
    distiller.loss().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters()
               if p.grad is not None)


@pytest.mark.parametrize('kind', UNDO, indirect=True)
def test_the_norm_is_taken_off_a_trained_layer(convert, case, kind):
    model, x = case
    convert(model)
    calibrate(model, [x])
    expected = model.eval()(x)
    UNDO[kind](model[0])
    torch.testing.assert_close(model(x), expected)
    assert 'weight' in model[0]._parameters
    to_float(model)
    assert list(model.state_dict()) == ['0.bias', '0.weight']


@pytest.mark.parametrize('kind', [k for k in MAKE if k not in UNDO],
                         indirect=True)
def test_a_parametrization_is_taken_off_a_trained_layer(convert, case):
    model, x = case
    convert(model)
    calibrate(model, [x])
    expected = model.eval()(x)
    parametrize.remove_parametrizations(model[0], 'weight')
    torch.testing.assert_close(model(x), expected)
    assert type(to_float(model)[0]) in (
        nn.Conv2d, Doubled, nn.ConvTranspose2d, nn.Linear)


def test_a_norm_is_given_before_calibration(convert, kind):
    model = nn.Sequential(LAYERS['linear'][0](), nn.Linear(6, 6))
    x = torch.randn(8, 5)
    convert(model)
    MAKE[kind](model[1])
    calibrate(model, [x])
    model.eval()
    torch.testing.assert_close(
        model[1](x := model[0](x)),
        F.linear(model[1].input_quantizer(x),
                 model[1].weight_quantizer(model[1].weight), model[1].bias))
    assert isinstance(to_float(model)[1], nn.Linear)
    model(torch.randn(2, 5))


def test_one_that_a_bias_has(convert):
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, 'bias', Halved())
    model, x = nn.Sequential(layer), torch.randn(5, 4)
    expected = model(x)
    convert(model, weight=dict(bits=8), activation=dict(bits=8))
    calibrate(model, [x])
    assert (model(x) - expected).abs().max() < 0.1
    assert torch.equal(to_float(model)(x), expected)


def test_cached_parametrizations(convert):
    model, x = nn.Sequential(halved(nn.Linear(4, 4))), torch.randn(5, 4)
    convert(model)
    calibrate(model, [x])
    with parametrize.cached():
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize('norm', [nn.utils.weight_norm,
                                  parametrizations.weight_norm])
def test_an_attentions_projection(convert, norm):
    """Loaded after convert, before calibration."""
    attention = norm(nn.MultiheadAttention(8, 2), 'in_proj_weight')
    x = torch.randn(5, 2, 8)
    convert(attention, weight=dict(bits=8), activation=dict(bits=8))
    loaded = {k: 3 * v if k.endswith(('_g', 'original0')) else v
              for k, v in float_state(attention).items()}
    attention.load_state_dict(loaded, strict=False)
    calibrate(attention, [(x, x, x)])
    out = attention.eval()(x, x, x)[0]
    expected = to_float(attention)(x, x, x)[0]
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()
