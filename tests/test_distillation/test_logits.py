"""Logit distillation against the formula in float64, and in a Distiller."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin import CSDLoss, Distiller, LogitKD, convert


def kd_64(student, teacher, temperature):
    """Mean over rows of T^2 sum p_t log(p_t / p_s), literally."""
    own, other = (torch.softmax(z / temperature, -1)
                  for z in (student, teacher))
    rows = (other * (other / own).log()).sum(-1)
    return temperature**2 * rows.mean()


@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    temperature=st.floats(0.5, 8), seed=st.integers(0, 2**31))
def test_value_and_gradient_equal_the_formula(shape, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator) * 3
    student.requires_grad_()
    loss = LogitKD(0.7, temperature)(student, teacher)
    wide = student.detach().double().requires_grad_()
    expected = 0.7 * kd_64(wide, teacher.double(), temperature)
    torch.testing.assert_close(
        loss.double(), expected, rtol=1e-4, atol=1e-4)
    grad, = torch.autograd.grad(loss, student)
    reference, = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(
        grad.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(temperature=0), 'temperature'),
    (dict(temperature='4'), 'temperature'),
    (dict(loss_weight=-1), 'loss_weight'),
])
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LogitKD(**options)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match='shape'):
        LogitKD()(torch.randn(2, 3), torch.randn(2, 4))


def models():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    teacher = copy.deepcopy(model)
    convert(model)
    return model, teacher


def test_the_distiller_gives_it_the_last_layer_alone():
    model, teacher = models()
    distiller = Distiller(model, teacher, LogitKD())
    x = torch.randn(8, 4)
    out = model(x)
    assert list(distiller.layer_losses()) == ['2']
    torch.testing.assert_close(distiller.loss(), LogitKD()(out, teacher(x)))


def test_beside_csd_each_is_known_by_its_name():
    model, teacher = models()
    distiller = Distiller(model, teacher, [CSDLoss(), LogitKD()])
    out = model(torch.randn(8, 4))
    parts = distiller.losses()
    assert set(parts) == {'csd', 'kd'}
    torch.testing.assert_close(distiller.loss(), sum(parts.values()))
    torch.testing.assert_close(
        sum(distiller.layer_losses().values()), distiller.loss().detach())
    assert out.requires_grad
