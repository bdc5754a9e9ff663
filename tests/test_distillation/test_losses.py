"""Losses: of one's own, CSD and the logits' against formulas in float64."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import MODELS
from reference import csd_64
from torch import nn

from fpq_plugin import (
    CSDLoss,
    DistillationLoss,
    Distiller,
    LogitKD,
    calibrate,
    convert,
)
from fpq_plugin.distillation import csd
from fpq_plugin.distillation.losses import refuse_other_shapes


class Distance(DistillationLoss):
    label = 'distance'

    def forward(self, student, teacher, channel_axis):
        return (student - teacher).square().sum()


def test_it_is_summed_over_layers_and_logged_by_its_label():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    teacher, x = copy.deepcopy(model), torch.randn(5, 4)
    convert(model)
    calibrate(model, [x])
    maps = {}
    for name in ('0', '2'):
        for whose, net in (('s', model), ('t', teacher)):
            net.get_submodule(name).register_forward_hook(
                lambda m, a, out, key=(whose, name): maps.update({key: out}))
    distiller = Distiller(model, teacher, Distance())
    model(x)
    wanted = sum((maps['s', name] - maps['t', name]).square().sum()
                 for name in ('0', '2'))
    torch.testing.assert_close(distiller.losses()['distance'], wanted)
    distiller.loss().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_without_an_attach_of_its_own_the_output_goes_on_as_it_is():
    student, teacher = torch.randn(3, 2), torch.randn(3, 2)
    out, loss = Distance().attach(student, teacher, -1)
    assert out is student
    assert loss == (student - teacher).square().sum()


def test_a_loss_needs_a_forward():
    with pytest.raises(TypeError, match='abstract'):
        type('Nothing', (DistillationLoss, ), dict(label='none'))()


def test_other_shapes_are_refused():
    refuse_other_shapes(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r'shape \(2, 3\) and the teacher'):
        refuse_other_shapes(torch.ones(2, 3), torch.ones(3, 2))


@st.composite
def maps(draw):
    """(student, teacher, axes, eps): float64 maps of 2 to 4 axes."""
    dim = draw(st.integers(2, 4))
    shape = [draw(st.integers(2, 5)) for _ in range(dim)]
    channel = draw(st.sampled_from([1, dim - 1]))
    axes = [d for d in range(dim) if d != channel]
    if len(axes) > 1 and draw(st.booleans()):
        axes = axes[1:]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.01, 1.0, 30.0]))
    offset = draw(st.sampled_from([0.0, 5.0]))
    student, teacher = (
        scale *
        (torch.randn(shape, generator=generator, dtype=torch.float64) + offset)
        for _ in range(2))
    eps = draw(st.sampled_from([1e-5, 1e-2, 1.0]))
    return student, teacher, tuple(axes), eps


@given(maps())
def test_value_and_gradient_equal_the_literal_formula(case):
    student, teacher, axes, eps = case
    own, ref = (student.clone().requires_grad_() for _ in range(2))
    _, value = csd(own, teacher, axes, eps)
    expected = csd_64(ref, teacher, axes, eps)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    grad, = torch.autograd.grad(value, own)
    grad_ref, = torch.autograd.grad(expected, ref)
    torch.testing.assert_close(
        grad, grad_ref, rtol=1e-7, atol=1e-9 * grad_ref.abs().max().item())


@given(maps())
def test_float32_is_close_to_float64(case):
    student, teacher, axes, eps = case
    student, teacher = student.float(), teacher.float()
    own = student.clone().requires_grad_()
    ref = student.double().requires_grad_()
    _, value = csd(own, teacher, axes, eps)
    expected = csd_64(ref, teacher.double(), axes, eps)
    elements = student.numel()
    assert abs(value.item() - expected.item()) < 1e-4 * elements
    grad, = torch.autograd.grad(value, own)
    grad_ref, = torch.autograd.grad(expected, ref)
    # The gradient is a difference of two terms of size 1 / std.
    std = (student.double().var(axes, correction=0) + eps).sqrt()
    torch.testing.assert_close(
        grad.double(), grad_ref, rtol=1e-3, atol=(1e-5 / std).max().item())


def test_gradgradcheck():
    student = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 3, 2, dtype=torch.float64)
    function = lambda z: csd(z, teacher, (0, 2), 1e-3)[1]  # noqa: E731
    assert torch.autograd.gradcheck(function, student)
    assert torch.autograd.gradgradcheck(function, student)


@pytest.mark.parametrize('statistics', ['batch', 'space'])
@pytest.mark.parametrize(('reduction', 'divide_by'), [('mean', 6 * 3 * 20),
                                                      ('channel_sum', 6 * 20),
                                                      ('sum', 1)])
@pytest.mark.parametrize('channel_axis', [1, -1])
def test_options(reduction, divide_by, statistics, channel_axis):
    student = torch.randn(6, 3, 4, 5, dtype=torch.float64)
    teacher = torch.randn(6, 3, 4, 5, dtype=torch.float64)
    axes = (0, 2, 3) if statistics == 'batch' else (2, 3)
    expected = csd_64(student, teacher, axes, 1e-5) / divide_by * 0.7
    if channel_axis == -1:
        student, teacher = (z.movedim(1, -1) for z in (student, teacher))
    loss = MODELS.build(
        dict(type='CSDLoss', loss_weight=0.7, reduction=reduction,
             statistics=statistics))
    torch.testing.assert_close(
        loss(student, teacher, channel_axis), expected)


def test_maps_without_space_take_batch_statistics():
    student, teacher = torch.randn(2, 8, 5, dtype=torch.float64)
    expected = csd_64(student, teacher, (0, ), 1e-5) / 40
    torch.testing.assert_close(
        CSDLoss(statistics='space')(student, teacher, -1), expected)


def test_correlation_identity():
    """For eps -> 0 the sum is 2 n (1 - corr) a channel (spec 4)."""
    student, teacher = torch.randn(2, 10, 1, 7, dtype=torch.float64)
    corr = torch.corrcoef(
        torch.stack([student.flatten(), teacher.flatten()]))[0, 1]
    _, value = csd(student, teacher, (0, 2), 1e-300)
    torch.testing.assert_close(value, 2 * 70 * (1 - corr))


def test_large_mean_does_not_cancel():
    student = torch.randn(8, 4, 6, 6) + 1000
    teacher = torch.randn(8, 4, 6, 6) + 1000
    expected = csd_64(student.double(), teacher.double(), (0, 2, 3), 1e-5)
    _, value = csd(student, teacher, (0, 2, 3), 1e-5)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_constant_channels_give_zero_and_no_nan():
    student = torch.ones(4, 2, 3, 3, requires_grad=True)
    loss = CSDLoss()(student, torch.ones(4, 2, 3, 3))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max().item() == 0


@pytest.mark.parametrize('compiled', ['0', '1'])
@pytest.mark.parametrize('value', [7.1, -5254799872.0, 2.3e14])
def test_constant_channels_of_any_size_beside_others(
        value, compiled, monkeypatch):
    monkeypatch.setenv('FPQ_COMPILE', compiled)
    student, teacher = (
        torch.randn(31, 6, 28, 28).contiguous(
            memory_format=torch.channels_last) for _ in range(2))
    student[:, 1] = value
    student[:, 2] = teacher[:, 2] = value / 3
    own = student.clone().requires_grad_()
    ref = student.double().requires_grad_()
    _, loss = csd(own, teacher, (0, 2, 3), 1e-5)
    expected = csd_64(ref, teacher.double(), (0, 2, 3), 1e-5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    grad, = torch.autograd.grad(loss, own)
    grad_ref, = torch.autograd.grad(expected, ref)
    assert (grad - grad_ref).norm() < 1e-5 * grad_ref.norm()


def test_autocast_and_low_precision_maps():
    student, teacher = torch.randn(2, 8, 4, 6, 6).bfloat16()
    expected = csd_64(student.double(), teacher.double(), (0, 2, 3), 1e-5)
    own = student.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        loss = CSDLoss(reduction='sum')(own, teacher)
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    assert own.grad.dtype is torch.bfloat16


def test_teacher_gets_no_gradient():
    student = torch.randn(4, 3, 2, 2, requires_grad=True)
    teacher = torch.randn(4, 3, 2, 2, requires_grad=True)
    CSDLoss()(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(('option', 'message'), [
    (dict(reduction='max'), 'reduction must be'),
    (dict(statistics='layer'), 'statistics must be'),
    (dict(loss_weight=-1), 'loss_weight must be'),
    (dict(eps=0), 'eps must be'),
])
def test_wrong_options(option, message):
    with pytest.raises(ValueError, match=message):
        CSDLoss(**option)


def test_other_shape():
    with pytest.raises(ValueError, match=r'\(4, 3\).*\(4, 2\)'):
        CSDLoss()(torch.ones(4, 3), torch.ones(4, 2))


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


def test_other_shapes_of_logits_are_refused():
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


def test_logits_of_no_images_have_a_loss():
    """It is 0, and its gradient arrives, as other processes ask."""
    assert LogitKD.takes_empty
    logits = torch.empty(0, 10, requires_grad=True)
    loss = LogitKD()(logits, torch.empty(0, 10))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].shape == logits.shape


def test_processes_are_apart_unless_one_asks():
    assert CSDLoss().sync is False
    assert 'sync=False' in repr(CSDLoss())


@pytest.mark.parametrize('statistics', ['batch', 'space'])
@pytest.mark.parametrize('shape', [(6, 5), (4, 5, 3), (4, 5, 3, 2)])
def test_attached_it_is_the_same_loss(shape, statistics):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    loss = CSDLoss(2.0, statistics=statistics)
    one, other = (student.clone().requires_grad_() for _ in '12')
    output, value = loss.attach(one, teacher, 1)
    assert torch.equal(output, student)
    wanted = loss(other, teacher, 1)
    torch.testing.assert_close(value, wanted)
    (output.sum() * 0 + value).backward()
    wanted.backward()
    torch.testing.assert_close(one.grad, other.grad)
