"""Each fake quantizer against its paper's formula in float64.

Value, gradients, differences and second derivatives are all held against it.
"""

import pytest
import torch
from frozen import Frozen
from hypothesis import given
from methods import calibrated, each, make, tensors, upstream_of
from torch import nn
from torch.func import functional_call, vmap

import fpq_plugin
from fpq_plugin import (
    LSQFakeQuantize,
    LSQPlusFakeQuantize,
    TorchAOFakeQuantize,
)
from fpq_plugin.quantizers.fake_quantize_function import fake_quantize


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
@given(case=tensors())
def test_torch_func_gets_the_same_values_and_gradients(
        cls, reference, weight, case):
    bits, x = case
    quantizer = calibrated(cls, weight, bits, x).eval()
    names, values = zip(('x', x), *quantizer.named_parameters())
    out = quantizer(x.requires_grad_())
    upstream = upstream_of(out)
    wanted = torch.autograd.grad(out, values, upstream)
    fixed = {name: value.detach() for name, value in zip(names, values)}

    def total(inputs):
        own = {k: v for k, v in inputs.items() if k != 'x'}
        found = functional_call(quantizer, own, (inputs['x'], ))
        return (found * upstream).sum(), found

    grads, again = torch.func.grad(total, has_aux=True)(fixed)
    torch.testing.assert_close(again, out, rtol=1e-6, atol=1e-6)
    tight = dict(rtol=1e-5, atol=1e-5)
    for name, other in zip(names, wanted):
        torch.testing.assert_close(grads[name], other, **tight)
    if cls is TorchAOFakeQuantize:
        return  # torch's operator has no forward mode
    # Along the same gradients, forward: their squares' sum.
    _, slope = torch.func.jvp(lambda i: total(i)[0], (fixed, ), (grads, ))
    torch.testing.assert_close(
        slope, sum(g.square().sum() for g in grads.values()), **tight)


def test_torch_func_gives_each_samples_gradients():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(48, 4))
    x = torch.randn(5, 1, 6, 6)
    fpq_plugin.convert(model)
    fpq_plugin.calibrate(model, [x])
    model.eval()
    fixed = {k: v.detach() for k, v in model.named_parameters()}

    def loss(parameters, sample):
        out = functional_call(model, parameters, (sample[None], ))
        return out.square().sum()

    found = vmap(torch.func.grad(loss), (None, 0))(fixed, x)
    for i, sample in enumerate(x):
        wanted = torch.autograd.grad(
            model(sample[None]).square().sum(), list(model.parameters()))
        for name, other in zip(fixed, wanted):
            torch.testing.assert_close(found[name][i], other)


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


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_model_in_half_computes_in_float32(dtype):
    """A step of few digits and a value of few: the quotient is not rounded."""
    x = torch.linspace(-3, 3, 4001).to(dtype)
    step = torch.tensor([0.0123]).to(dtype)
    zero = torch.tensor([3], dtype=torch.int32)
    out = fake_quantize(x, step, zero, 0, 255)
    integers = torch.round(x.double() / step.double()) + 3
    wanted = (integers.clamp(0, 255) - 3) * step.double()
    assert out.dtype == dtype
    # At an edge float32 may fall on the other side of it.
    off = (out.double() - wanted.to(dtype).double()).abs()
    assert (off > 0).float().mean() < 1e-3
