"""The compiled forms against the plain ones, and the way back to plain."""

import logging
import shutil

import pytest
import torch
from mmengine.logging import MMLogger
from torch._inductor import compile_fx

from fpq_plugin import CSDLoss
from fpq_plugin._compat import kernels as compiled
from fpq_plugin._compat.kernels import CompileReport, compile_report
from fpq_plugin._compat.versions import INDUCTOR_TAKES_SYMBOLIC_SIZES
from fpq_plugin.distillation import csd_function
from fpq_plugin.quantizers import fake_quantize, fake_quantize_function


@pytest.fixture
def report(monkeypatch):
    """A fresh report; also skips what needs a compiler where there is none."""
    monkeypatch.delenv('FPQ_COMPILE', raising=False)
    if not any(map(shutil.which, ('g++', 'c++', 'clang++'))):
        pytest.skip('no C++ compiler on this machine')
    if not INDUCTOR_TAKES_SYMBOLIC_SIZES:
        pytest.skip('the kernels do not compile with torch 2.1')
    assert compile_report().failure is None
    fresh = CompileReport()
    monkeypatch.setattr(compiled, '_report', fresh)
    yield fresh
    assert fresh.failure is None


def both(monkeypatch, function):
    """``function``'s results, compiled and plain."""
    fast = function()
    monkeypatch.setenv('FPQ_COMPILE', '0')
    return fast, function()


def layouts():
    """Tensors that are large enough to take the compiled form."""
    yield 'vector', torch.randn(20011)
    yield 'tokens', torch.randn(4, 61, 97)
    yield 'maps', torch.randn(3, 7, 33, 35)
    yield 'channels_last', torch.randn(
        3, 7, 33, 35).contiguous(memory_format=torch.channels_last)
    yield 'transposed', torch.randn(211, 103).t()
    yield 'strided', torch.randn(300, 201)[:, ::2]
    yield 'five_axes', torch.randn(2, 6, 7, 11, 23)
    yield 'bfloat16', torch.randn(5, 6, 33, 31).bfloat16()


LAYOUTS = dict(layouts())


@pytest.mark.parametrize(
    ('name', 'ch_axis'),
    [(name, ch_axis) for name, x in LAYOUTS.items()
     for ch_axis in (None, *range(min(x.dim(), 2)))])
def test_fake_quantize(name, ch_axis, report, monkeypatch):
    x = LAYOUTS[name]
    channels = 1 if ch_axis is None else x.shape[ch_axis]
    scale = 0.1 + 0.3 * torch.rand(channels)
    scale[0] *= -1
    zero_point = torch.randint(0, 15, (channels, )).int()
    upstream = torch.randn(x.shape).to(x.dtype)

    def run():
        own = x.clone().requires_grad_()  # keeps a dense tensor's strides
        factor = scale.clone().requires_grad_()
        out = fake_quantize(own, factor, zero_point, 0, 15, ch_axis, 0.3)
        return out, *torch.autograd.grad(out, (own, factor), upstream)

    (out, grad_x, grad_scale), plain = both(monkeypatch, run)
    assert out.dtype is x.dtype
    assert torch.equal(out, plain[0])
    assert torch.equal(grad_x, plain[1])
    assert out.stride() == plain[0].stride()
    torch.testing.assert_close(
        grad_scale, plain[2], rtol=1e-4, atol=1e-6 * x.numel()**0.5)


@pytest.mark.parametrize(('shape', 'rows'), [
    ((4, 6, 33, 32), 256), ((3, 7, 33, 35), 1), ((8192, ), 1024),
    ((512, ), 512), ((2, 7, 33, 35), 2)])
def test_a_sum_in_many_rows_is_the_sum(shape, rows, report, monkeypatch):
    monkeypatch.setattr(fake_quantize_function, '_has_many_processors',
                        lambda x: True)
    x = torch.randn(shape, requires_grad=True)
    scale = torch.tensor([-0.2], requires_grad=True)
    upstream = torch.randn(shape)

    def run():
        out = fake_quantize(x, scale, torch.tensor([7]).int(), 0, 15,
                            grad_factor=0.3)
        return torch.autograd.grad(out, (x, scale), upstream)

    (grad_x, grad_scale), plain = both(monkeypatch, run)
    assert torch.equal(grad_x, plain[0])
    torch.testing.assert_close(
        grad_scale, plain[1], rtol=1e-4, atol=1e-6 * x.numel()**0.5)
    assert fake_quantize_function._rows_to_sum(x, scale) == rows


@pytest.mark.parametrize('name', [n for n in LAYOUTS if n != 'vector'])
@pytest.mark.parametrize('statistics', ['batch', 'space'])
@pytest.mark.parametrize('channel_axis', [1, -1])
def test_csd(name, statistics, channel_axis, report, monkeypatch):
    student = LAYOUTS[name]
    teacher = (0.7 * student + 0.5 * torch.randn(student.shape) + 3).to(
        student.dtype)
    loss = CSDLoss(statistics=statistics)

    def run():
        own = student.clone().requires_grad_()
        value = loss(own, teacher, channel_axis)
        return value, *torch.autograd.grad(value, own)

    (value, grad), plain = both(monkeypatch, run)
    torch.testing.assert_close(value, plain[0], rtol=1e-5, atol=1e-6)
    tolerance = 2**-7 if grad.dtype is torch.bfloat16 else 1e-4
    torch.testing.assert_close(
        grad, plain[1], rtol=tolerance,
        atol=tolerance * plain[1].abs().max().item())
    assert grad.shape == student.shape


def test_csd_with_a_large_mean(report, monkeypatch):
    student, teacher = 1000 + torch.randn(2, 8, 4, 32, 32)
    monkeypatch.setattr(compiled, 'MIN_ELEMENTS', 0)
    expected = CSDLoss()(student.double(), teacher.double())
    value = CSDLoss()(student, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_under_autocast_and_in_place_after(report):
    x = torch.randn(200, 100, requires_grad=True)
    scale = torch.full((1, ), 0.2, requires_grad=True)
    zero_point = torch.zeros(1, dtype=torch.int32)
    with torch.autocast('cpu', torch.bfloat16):
        out = fake_quantize(x, scale, zero_point, -8, 7)
        assert out.dtype is torch.float32
        out.mul_(2).sum().backward()
    assert x.grad.unique().tolist() == [0, 2]


def test_second_derivatives_start_from_the_compiled_form(report, monkeypatch):
    x = torch.randn(40000)
    scale = torch.tensor([0.1])
    zero_point = torch.tensor([3], dtype=torch.int32)

    def run():
        own = x.clone().requires_grad_()
        factor = scale.clone().requires_grad_()
        loss = fake_quantize(own, factor, zero_point, 0, 15).pow(3).sum()
        grads = torch.autograd.grad(loss, (own, factor), create_graph=True)
        return torch.autograd.grad(
            sum(g.square().sum() for g in grads), (own, factor))

    fast, plain = both(monkeypatch, run)
    for own, ref in zip(fast, plain):
        torch.testing.assert_close(own, ref, rtol=1e-3, atol=1e-3)


def test_many_shapes_cost_a_handful_of_compilations(report, monkeypatch):
    for kernel in (fake_quantize_function._quantize,
                   fake_quantize_function._gradients, csd_function._loss,
                   csd_function._gradient):
        monkeypatch.setattr(kernel, '_fast', {})
    for i in range(20):
        shape = (2 + i % 3, 8 + 5 * i, 16 + i, 16 + 2 * i)
        x = torch.randn(shape, requires_grad=True)
        weight = torch.randn(
            32 + i, 16 + 3 * i, 3, 3 + i % 2, requires_grad=True)
        out = fake_quantize(x, torch.full((1, ), 0.2, requires_grad=True),
                            torch.zeros(1).int(), 0, 15)
        quantized = fake_quantize(
            weight, torch.full((len(weight), ), 0.2, requires_grad=True),
            torch.zeros(len(weight)).int(), -8, 7, 0)
        loss = CSDLoss()(out, torch.randn(shape))
        (loss + quantized.sum()).backward()
    assert 0 < report.count <= 10


def test_small_and_float64_tensors_do_not_compile(report):
    for x in (torch.randn(100), torch.randn(20000, dtype=torch.float64)):
        x.requires_grad_()
        fake_quantize(x, torch.ones(1, dtype=x.dtype), torch.zeros(1).int(),
                      0, 15).sum().backward()
    assert report.count == 0


def test_only_what_trains_compiles(report, monkeypatch):
    """A test of a model is over before a compilation has paid."""
    monkeypatch.setattr(fake_quantize_function._quantize, '_fast', {})
    x = torch.randn(20011)
    scale = torch.full((1, ), 0.2, requires_grad=True)
    quantizer = x, scale, torch.zeros(1).int(), 0, 15
    with torch.no_grad():
        plain = fake_quantize(*quantizer)
    with torch.inference_mode():
        fake_quantize(*quantizer)
    assert report.count == 0
    fake_quantize(*quantizer)
    assert report.count == 1
    # What is compiled serves the validation too.
    monkeypatch.setattr(fake_quantize_function._quantize, 'plain', None)
    with torch.no_grad():
        assert torch.equal(fake_quantize(*quantizer), plain)
    assert report.count == 1


@pytest.fixture
def log(monkeypatch):
    """Records of the logger that the package writes to."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_without_a_compiler_it_is_plain_and_says_so_once(monkeypatch, log):
    def fail(*args, **kwargs):
        raise RuntimeError('no C++ compiler\nand more')

    monkeypatch.delenv('FPQ_COMPILE', raising=False)
    monkeypatch.setattr(compiled, '_report', CompileReport())
    monkeypatch.setattr(compiled, 'INDUCTOR_TAKES_SYMBOLIC_SIZES', True)
    monkeypatch.setattr(compile_fx, 'compile_fx_inner', fail)
    function = compiled.compiled(lambda x: x + 1)
    x = torch.zeros(1, compiled.MIN_ELEMENTS)
    assert function.pays(x)
    assert function(x).sum() == x.numel()
    assert not function.pays(x)
    warnings = [r for r in log if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert 'RuntimeError: no C++ compiler)' in warnings[0].getMessage()
    assert compile_report().failure == 'RuntimeError: no C++ compiler'


def test_switched_off_by_the_environment(monkeypatch):
    function = compiled.compiled(lambda x: x)
    x = torch.zeros(compiled.MIN_ELEMENTS)
    monkeypatch.setattr(compiled, '_report', CompileReport())
    monkeypatch.delenv('FPQ_COMPILE', raising=False)
    assert function.pays(x)
    monkeypatch.setenv('FPQ_COMPILE', '0')
    assert not function.pays(x)


def test_inside_a_compiled_model_the_plain_function_is_traced(report):
    x = torch.randn(20000, requires_grad=True)
    scale = torch.full((1, ), 0.2, requires_grad=True)
    zero_point = torch.zeros(1).int()

    def model(x):
        return fake_quantize(x, scale, zero_point, -8, 7).square().sum()

    expected, = torch.autograd.grad(model(x), x)
    loss = torch.compile(model, backend='aot_eager', fullgraph=True)(x)
    grad, = torch.autograd.grad(loss, x)
    torch.testing.assert_close(grad, expected)
