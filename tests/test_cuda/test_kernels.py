"""Quantizers and losses on a GPU against float64 on the CPU."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import csd_64, fake_quantize_64
from torch import nn

from fpq_plugin import (
    CSDLoss,
    Distiller,
    LSQFakeQuantize,
    StochasticFeaturePerturbation,
    calibrate,
    convert,
)
from fpq_plugin._compat.kernels import compile_report
from fpq_plugin.quantizers import fake_quantize


def layout(name, shape):
    """Values that lie half-way between integers of the steps used, too."""
    x = torch.randint(-64, 65, shape).double() / 8
    if name == 'channels_last':
        return x.contiguous(memory_format=torch.channels_last)
    return x.transpose(0, 1) if name == 'strided' else x


@given(
    name=st.sampled_from(['dense', 'channels_last', 'strided']),
    shape=st.tuples(*(st.integers(1, 12) for _ in range(4))),
    ch_axis=st.sampled_from([None, 0, 1]),
    bits=st.integers(2, 8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    plain=st.booleans())
def test_fake_quantize(name, shape, ch_axis, bits, dtype, plain):
    x = layout(name, shape)
    channels = 1 if ch_axis is None else x.shape[ch_axis]
    # Powers of two: the quotient is exact, and so is the side it rounds to.
    scale = 2.0**torch.randint(-3, 2, (channels, )).double()
    zero_point = torch.randint(0, 2**bits, (channels, ), dtype=torch.int32)
    along = [1] * x.dim()
    along[ch_axis or 0] = -1
    upstream = torch.randn(x.shape).to(dtype)

    def run(x, scale, function):
        x, scale = (z.detach().clone().requires_grad_() for z in (x, scale))
        out = function(x, scale)
        grads = torch.autograd.grad(out, (x, scale), upstream.to(out))
        return [z.cpu().double() for z in (out, *grads)]

    expected = run(
        x, scale, lambda x, s: fake_quantize_64(
            x, s.view(along), zero_point.view(along), 0, 2**bits - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FPQ_COMPILE', '0' if plain else '1')
        out, grad_x, grad_scale = run(
            x.to('cuda', dtype), scale.float().cuda(),
            lambda x, s: fake_quantize(x, s, zero_point.cuda(), 0,
                                       2**bits - 1, ch_axis))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected[0], rtol=eps, atol=0)
    torch.testing.assert_close(grad_x, expected[1], rtol=eps, atol=0)
    torch.testing.assert_close(
        grad_scale, expected[2], rtol=1e-4, atol=1e-4 * x.numel()**0.5)
    assert compile_report().failure is None


@pytest.mark.parametrize('shape', [(16, 24, 7, 9), (8, 50, 64), (64, 10)])
@pytest.mark.parametrize('statistics', ['batch', 'space'])
@pytest.mark.parametrize('plain', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_csd(shape, statistics, plain, dtype, monkeypatch):
    monkeypatch.setenv('FPQ_COMPILE', '0' if plain else '1')
    channel = 1 if len(shape) == 4 else len(shape) - 1
    teacher = (2 * torch.randn(shape) + 5).to('cuda', dtype)
    student = (teacher + torch.randn(shape, device='cuda')).to(dtype)
    axes = [d for d in range(len(shape)) if d != channel]
    if statistics == 'space' and len(axes) > 1:
        axes = axes[1:]
    wide = student.cpu().double().requires_grad_()
    expected = csd_64(wide, teacher.cpu().double(), axes, 1e-5)
    expected_grad, = torch.autograd.grad(expected, wide)
    student.requires_grad_()
    loss = CSDLoss(reduction='sum', statistics=statistics)(
        student, teacher, channel)
    grad, = torch.autograd.grad(loss, student)
    assert grad.dtype is dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    tolerance = 2**-7 if dtype is torch.bfloat16 else 1e-4
    torch.testing.assert_close(
        grad.cpu().double(), expected_grad, rtol=tolerance,
        atol=tolerance * expected_grad.abs().max().item())
    assert compile_report().failure is None


def test_noise_is_uniform_and_named_by_its_place():
    quantizer = LSQFakeQuantize(bits=4).cuda()
    x = torch.rand(200_000, device='cuda')
    quantizer(x)
    step = quantizer.step().item()
    perturbation = StochasticFeaturePerturbation(p=1)
    first = (perturbation(x, quantizer) - quantizer(x)) / step
    assert first.abs().max() <= 0.5 + 1e-4
    assert first.mean().item() == pytest.approx(0, abs=5e-3)
    assert first.var().item() == pytest.approx(1 / 12, rel=1e-2)
    perturbation.clock.start_iteration(0)  # the same place again
    again = (perturbation(x, quantizer) - quantizer(x)) / step
    assert torch.equal(first, again)


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_a_step_never_waits_for_the_gpu(backend):
    """As torch's learnable fake quantizer does once a call."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 144, 10)).cuda()
    x = torch.randn(8, 3, 16, 16, device='cuda')
    teacher = copy.deepcopy(model)
    convert(model, backend=backend, perturbation=dict(p=1.0))
    calibrate(model, [x])
    distiller = Distiller(model, teacher, CSDLoss())

    def step():
        loss = model(x).square().mean() + distiller.loss()
        loss.backward()

    step()  # compiles, and reads what is read once
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_calibration_finds_what_the_cpu_finds(backend):
    torch.manual_seed(1)
    x = torch.rand(16, 3, 12, 12)
    found = []
    for device in ('cpu', 'cuda'):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
                              nn.Conv2d(8, 4, 3)).to(device)
        convert(model, backend=backend,
                activation=dict(bits=4, observer='mse'))
        calibrate(model, [x.to(device)])
        found.append({k: v.cpu().double()
                      for k, v in model.state_dict().items()
                      if 'quantizer' in k})
    assert found[0].keys() == found[1].keys()
    assert found[0]
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=0,
                                   msg=key)
