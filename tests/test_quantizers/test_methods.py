"""Each fake quantizer against its paper's formula in float64, and FPQ on it.

A method's reference is written with :class:`frozen.Frozen` from the paper, as
a function of the tensor and the learned parameters; value, gradients,
differences and second derivatives are all held against it.
"""

import copy

import pytest
import torch
from frozen import Frozen
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization import FakeQuantizeBase

from fpq_plugin import (
    CSDLoss,
    Distiller,
    DoReFaFakeQuantize,
    LSQFakeQuantize,
    LSQPlusFakeQuantize,
    PACTFakeQuantize,
    TorchAOFakeQuantize,
    calibrate,
    convert,
    param_groups,
)


def axes(x, quantizer):
    """Shape for values of each channel, and the axes within a channel."""
    if not quantizer.is_per_channel:
        return [1] * x.dim(), list(range(x.dim()))
    shape = [1] * x.dim()
    shape[quantizer.ch_axis] = -1
    return shape, [d for d in range(x.dim()) if d != quantizer.ch_axis]


def affine(f, q, x, step, zero_point):
    """Equation (3) with LSQ's straight-through gradients."""
    v = f.round(x / step) + zero_point
    low = f.where(v < q.quant_min, torch.full_like(v, q.quant_min), v)
    return (f.where(low > q.quant_max, torch.full_like(v, q.quant_max), low)
            - zero_point) * step


def slowed(value, factor):
    """``value`` whose gradient carries ``factor``."""
    return value.detach() + factor * (value - value.detach())


def lsq(f, q, x, scale):
    shape, dims = axes(x, q)
    g = (x.numel() / scale.numel() * q.quant_max)**-0.5
    return affine(f, q, x, slowed(scale, g).view(shape),
                  q.zero_point.view(shape))


def lsq_plus(f, q, x, scale, offset=None):
    if offset is None:
        return lsq(f, q, x, scale)
    shape, dims = axes(x, q)
    g = (x.numel() / scale.numel() * q.quant_max)**-0.5
    offset = slowed(offset, g).view(shape)
    return affine(f, q, x - offset, slowed(scale, g).view(shape), 0) + offset


def pact(f, q, x, clip):
    shape, dims = axes(x, q)
    levels = q.quant_max - q.quant_min
    step = clip.view(shape) / levels
    zero = q.zero_point.view(shape)
    low, high = (q.quant_min - zero) * step, (q.quant_max - zero) * step
    x = f.where(x < low, low.expand_as(x), x)
    x = f.where(x > high, high.expand_as(x), x)
    # Rounding to the grid adds what is a constant to the gradient.
    fixed = step.detach()
    return x + f.constant(torch.round(x / fixed) * fixed - x)


def dorefa(f, q, x):
    shape, dims = axes(x, q)
    most = x.detach().abs().amax(dims, keepdim=True)
    squeezed = torch.tanh(x)
    squeezed = squeezed / squeezed.abs().amax(dims, keepdim=True)
    levels = 2**q.num_bits - 1
    unit = f.round((squeezed / 2 + 0.5) * levels) / levels
    # M is a constant to the gradient: take the first evaluation's.
    return f.constant(most) * (2 * unit - 1)


def torch_ao(f, q, x):
    shape, dims = axes(x, q)
    step, zero = q.step().double().view(shape), q.zero_point.view(shape)
    return affine(f, q, x, step, zero)


METHODS = [
    (LSQFakeQuantize, lsq, False), (LSQFakeQuantize, lsq, True),
    (LSQPlusFakeQuantize, lsq_plus, False),
    (LSQPlusFakeQuantize, lsq_plus, True),
    (PACTFakeQuantize, pact, False), (PACTFakeQuantize, pact, True),
    (DoReFaFakeQuantize, dorefa, True),
    (TorchAOFakeQuantize, torch_ao, False),
    (TorchAOFakeQuantize, torch_ao, True),
]
IDS = [f'{cls.__name__}-{"weight" if w else "feature"}'
       for cls, _, w in METHODS]
each = pytest.mark.parametrize(('cls', 'reference', 'weight'), METHODS,
                               ids=IDS)
each_type = pytest.mark.parametrize(
    'cls', sorted({cls for cls, *_ in METHODS}, key=lambda c: c.__name__))


def make(cls, weight, bits=4, channels=None):
    """A feature's quantizer; a weight's: symmetric, per channel."""
    if not weight:
        return cls(bits=bits)
    options = {} if cls is DoReFaFakeQuantize else dict(symmetric=True)
    return cls(bits=bits, per_channel=True, num_channels=channels, **options)


@st.composite
def tensors(draw):
    """(bits, x) with x float64 of 2 to 4 axes, some far from 0."""
    bits = draw(st.integers(2, 8))
    shape = draw(st.lists(st.integers(2, 4), min_size=2, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shift = draw(st.sampled_from([0.0, 0.7, -1.5]))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return bits, x + shift


def calibrated(cls, weight, bits, x, shrink=0.8):
    """A float64 quantizer that clips some of ``x``."""
    quantizer = make(cls, weight, bits, x.shape[0])
    quantizer.observe(x)
    quantizer.initialize()
    if cls is TorchAOFakeQuantize:
        quantizer.fake.scale.mul_(shrink)
        return quantizer.eval()
    quantizer.double()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(shrink).add_(0.01)
    return quantizer


def upstream_of(out):
    return torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)


@each
@given(case=tensors())
def test_value_and_gradients_equal_the_papers(cls, reference, weight, case):
    bits, x = case
    quantizer = calibrated(cls, weight, bits, x)
    inputs = [x.requires_grad_(), *quantizer.parameters()]
    out = quantizer(x)
    expected = reference(Frozen(), quantizer, *inputs)
    tight = dict(rtol=1e-9, atol=1e-9)
    if cls is TorchAOFakeQuantize:  # torch's op multiplies by 1 / s in float32
        tight = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, expected, **tight)
    grads = torch.autograd.grad(out, inputs, upstream_of(out))
    theirs = torch.autograd.grad(expected, inputs, upstream_of(out))
    for own, other in zip(grads, theirs):
        torch.testing.assert_close(own, other, **tight)


@each
@given(case=tensors())
def test_gradients_equal_finite_differences(cls, reference, weight, case):
    bits, x = case
    quantizer = calibrated(cls, weight, bits, x)
    inputs = [x.requires_grad_(), *quantizer.parameters()]
    out = quantizer(x)
    upstream = upstream_of(out)
    grads = torch.autograd.grad(out, inputs, upstream)
    frozen = Frozen()
    points = [p.detach() for p in inputs]
    reference(frozen, quantizer, *points)
    n = x.numel() / max(sum(p.numel() for p in points[1:2]), 1)
    g = (n * quantizer.quant_max)**-0.5

    def value(k, delta):
        moved = [p + delta if i == k else p for i, p in enumerate(points)]
        out = reference(frozen.again(), quantizer, *moved)
        return (out * upstream).sum().item()

    h = 1e-6
    for k, (point, grad) in enumerate(zip(points, grads)):
        # LSQ's factor belongs to the update, not to the function.
        factor = g if k and cls in (LSQFakeQuantize,
                                    LSQPlusFakeQuantize) else 1
        for i in range(min(point.numel(), 8)):
            delta = torch.zeros_like(point)
            delta.view(-1)[i] = h
            slope = (value(k, delta) - value(k, -delta)) / (2 * h)
            assert slope * factor == pytest.approx(
                grad.reshape(-1)[i].item(), rel=1e-4, abs=1e-5)


@each
@given(case=tensors())
def test_hessian_products_equal_the_references(cls, reference, weight, case):
    bits, x = case
    quantizer = calibrated(cls, weight, bits, x)
    inputs = [x.requires_grad_(), *quantizer.parameters()]

    def hessian_product(function):
        grads = torch.autograd.grad(
            function(*inputs).pow(3).sum(), inputs, create_graph=True)
        weighted = sum((g * g.detach().cos()).sum() for g in grads)
        return torch.autograd.grad(weighted, inputs, materialize_grads=True)

    ours = hessian_product(lambda x, *_: quantizer(x))
    theirs = hessian_product(lambda *v: reference(Frozen(), quantizer, *v))
    for own, other in zip(ours, theirs):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@each
def test_at_most_two_to_the_bits_values_in_the_inputs_dtype(
        cls, reference, weight):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        quantizer = make(cls, weight, 3, 4)
        x = torch.randn(4, 200).to(dtype).requires_grad_()
        out = quantizer(x)
        assert out.dtype is dtype
        for row in out.float() if weight else [out.float()]:
            assert 2 < row.unique().numel() <= 8
        out.sum().backward()
        assert x.grad.dtype is dtype
        for parameter in quantizer.parameters():
            assert parameter.grad.dtype is torch.float32
            assert torch.isfinite(parameter.grad).all()


@each
def test_autocast_computes_in_float32(cls, reference, weight):
    quantizer = make(cls, weight, 8, 64)
    x = torch.randn(64, 16)
    quantizer(x)
    quantizer.eval()
    with torch.autocast('cpu', torch.bfloat16):
        out = quantizer(x)
    torch.testing.assert_close(out, quantizer(x), rtol=0, atol=0)


@each_type
@pytest.mark.parametrize('bits', [1, 9, 4.0, '4', True, None])
def test_other_bits_are_refused(cls, bits):
    with pytest.raises(ValueError, match='bits must be an integer of 2 to 8'):
        cls(bits=bits)


@each_type
def test_uninitialized_is_an_error_in_eval(cls):
    with pytest.raises(RuntimeError, match='calibrate'):
        cls().eval()(torch.randn(3, 3))


@each_type
def test_a_range_that_is_not_finite_is_refused(cls):
    quantizer = cls()
    quantizer.observe(torch.tensor([1.0, float('inf')]))
    with pytest.raises(ValueError, match='inf'):
        quantizer.initialize()


@each
def test_state_dict_roundtrip_at_fixed_shapes(cls, reference, weight):
    trained = make(cls, weight, 4, 5)
    shapes = {k: v.shape for k, v in trained.state_dict().items()}
    x = torch.randn(5, 7)
    trained(x)
    state = trained.state_dict()
    assert {k: v.shape for k, v in state.items()} == shapes
    fresh = make(cls, weight, 4, 5).eval()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), trained.eval()(x))
    with pytest.raises(RuntimeError, match='4 bits and this quantizer 2'):
        make(cls, weight, 2, 5).load_state_dict(state)


@each
def test_a_dead_channel_keeps_its_gradient(cls, reference, weight):
    quantizer = make(cls, weight, 4, 2)
    quantizer(torch.zeros(2, 4))
    x = torch.zeros(2, 4, requires_grad=True)
    out = quantizer(x)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    'cls', [LSQPlusFakeQuantize, PACTFakeQuantize, DoReFaFakeQuantize])
def test_in_a_torch_ao_qconfig(cls):
    from torch.ao.quantization import QConfig, prepare_qat

    assert issubclass(cls, FakeQuantizeBase)
    options = {} if cls is DoReFaFakeQuantize else dict(symmetric=True)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    net.qconfig = QConfig(
        activation=LSQFakeQuantize.with_args(bits=4),
        weight=cls.with_args(bits=4, per_channel=True, **options))
    net = prepare_qat(net.train())
    net(torch.randn(4, 3, 8, 8)).sum().backward()
    assert isinstance(net[0].weight_fake_quant, cls)
    assert net[0].weight_fake_quant.step().shape == (6, )
    assert torch.isfinite(net[0].weight.grad).all()


def test_lsq_plus_starts_as_lsq_and_from_three_deviations():
    x = torch.randn(100) + 0.4
    plus, plain = LSQPlusFakeQuantize(bits=4), LSQFakeQuantize(bits=4)
    torch.testing.assert_close(plus(x), plain(x))
    w = torch.randn(3, 50)
    weight = make(LSQPlusFakeQuantize, True, 4, 3)
    weight(w)
    mean, std = w.mean(1), w.std(1, correction=0)
    most = torch.maximum((mean + 3 * std).abs(), (mean - 3 * std).abs())
    torch.testing.assert_close(weight.step(), most / 8)


def test_pact_is_the_papers_after_a_relu():
    """y = clip(x, 0, alpha); d y / d alpha = 1 where x >= alpha, else 0."""
    quantizer = PACTFakeQuantize(bits=4)
    quantizer(torch.tensor([0.0, 3.0]))
    with torch.no_grad():
        quantizer.clip.fill_(2.0)
    x = torch.tensor([0.0, 0.5, 1.3, 2.5, 7.0])
    out = quantizer(x)
    step = 2.0 / 15
    torch.testing.assert_close(out, torch.round(x.clamp(0, 2) / step) * step)
    out.sum().backward()
    assert quantizer.clip.grad.item() == 2.0


def test_torch_ao_follows_the_moving_average_in_training_alone():
    quantizer = TorchAOFakeQuantize(bits=8, averaging_constant=0.5)
    quantizer.observe(torch.tensor([0.0, 1.0]))
    quantizer.initialize()
    assert quantizer.step().item() == pytest.approx(1 / 255)
    quantizer(torch.tensor([0.0, 2.0]))
    assert quantizer.step().item() == pytest.approx(1.5 / 255)
    quantizer.eval()(torch.tensor([0.0, 9.0]))
    assert quantizer.step().item() == pytest.approx(1.5 / 255)


@each
def test_values_are_those_of_its_integers_or_it_has_none(cls, reference,
                                                         weight):
    quantizer = make(cls, weight, 4, 6)
    x = torch.randn(6, 50)
    quantizer(x)
    values = quantizer.eval()(x)
    if cls is DoReFaFakeQuantize or (cls is LSQPlusFakeQuantize
                                     and not weight):
        with pytest.raises(NotImplementedError, match='integer zero point'):
            quantizer.grid()
        with pytest.raises(NotImplementedError, match='integer zero point'):
            quantizer.calculate_qparams()
        return
    grid = quantizer.grid()
    shape = (-1, 1) if grid.ch_axis == 0 else (1, 1)
    step, zero_point = grid.step.view(shape), grid.zero_point.view(shape)
    integers = torch.round(values / step) + zero_point
    assert grid.quant_min <= integers.min()
    assert integers.max() <= grid.quant_max
    torch.testing.assert_close((integers - zero_point) * step, values)


def test_dorefa_is_refused_for_features():
    with pytest.raises(ValueError, match=r'activation\.type: DoReFa.* weigh'):
        convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
                activation=dict(type='DoReFaFakeQuantize'))


PAIRS = [
    ('LSQPlusFakeQuantize', 'LSQPlusFakeQuantize'),
    ('DoReFaFakeQuantize', 'PACTFakeQuantize'),
    ('TorchAOFakeQuantize', 'TorchAOFakeQuantize'),
    ('PACTFakeQuantize', 'LSQFakeQuantize'),
]


@pytest.mark.parametrize(('weight', 'activation'), PAIRS)
def test_fpq_trains_on_it(weight, activation):
    """SFP adds noise of its step, CSD falls, every parameter moves."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 5))
    teacher = copy.deepcopy(model)
    x = torch.randn(16, 1, 8, 8)
    convert(
        model,
        weight=dict(type=weight, bits=2),
        activation=dict(type=activation, bits=2),
        perturbation=dict(p=1.0))
    calibrate(model, [x])
    layer = model[3]
    noisy = layer.quantized_input(x := torch.randn(16, 6, 6, 6).relu())
    # In eval mode torch's observer does not move on.
    noise = (noisy - layer.input_quantizer.eval()(x)).abs()
    layer.input_quantizer.train()
    step = layer.input_quantizer.step()
    assert 0.45 * step < noise.max() <= 0.5 * step * (1 + 1e-5)

    distiller = Distiller(model, teacher, CSDLoss())
    optimizer = torch.optim.SGD(
        param_groups(model, lr=0.02, weight_decay=5e-4), momentum=0.9)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    x, losses = torch.randn(16, 1, 8, 8), []
    for _ in range(12):
        optimizer.zero_grad()
        model(x)
        loss = distiller.loss()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        # An affine map per channel is CSD's blind spot: biases and norms.
        if 'quantizer' in name or parameter.dim() > 1:
            assert not torch.equal(parameter, before[name]), name
