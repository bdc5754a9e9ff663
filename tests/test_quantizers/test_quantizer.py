"""A quantizer's life: new, observing, ready, idle."""

import copy

import pytest
import torch
from methods import each, each_type, make
from torch import nn

from fpq_plugin import (
    CSDLoss,
    Distiller,
    DoReFaFakeQuantize,
    LSQFakeQuantize,
    LSQPlusFakeQuantize,
    TorchAOFakeQuantize,
    calibrate,
    convert,
    param_groups,
)
from fpq_plugin.quantizers import (
    Stage,
    along_channels,
    full_precision,
    named_quantizers,
    observing,
)

KINDS = [LSQFakeQuantize, TorchAOFakeQuantize]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def quantizer(request):
    return request.param(bits=4)


def test_from_new_to_ready(quantizer):
    x = torch.linspace(-1, 2, 31)
    assert quantizer.stage is Stage.NEW
    with observing([quantizer]):
        assert quantizer.stage is Stage.OBSERVING
        with full_precision(quantizer):
            assert torch.equal(quantizer(x), x)
    assert quantizer.stage is Stage.NEW
    quantizer.initialize()
    assert quantizer.stage is Stage.READY
    assert int(quantizer.initialized) == Stage.READY
    assert quantizer.eval()(x).unique().numel() == 16


def test_an_idle_one_passes_its_input_on(quantizer):
    x = torch.randn(5)
    quantizer.leave_float()
    assert quantizer.stage is Stage.IDLE
    assert torch.equal(quantizer(x), x)
    quantizer.enable_fake_quant(True)
    assert torch.equal(quantizer(x), x)
    twin = type(quantizer)(bits=4)
    twin.load_state_dict(quantizer.state_dict())
    assert twin.stage is Stage.IDLE


def test_a_predicate_changes_nothing(quantizer):
    """Also where the state was copied in behind the quantizer's back."""
    ready = copy.deepcopy(quantizer)
    ready(torch.linspace(-1, 2, 31))
    for own, value in zip(quantizer.buffers(), ready.buffers()):
        own.data = value.clone()
    before = dict(vars(quantizer))
    assert quantizer.is_initialized()
    assert quantizer.has_step()
    assert not quantizer.lacks_step()
    assert quantizer.stage is Stage.READY
    assert vars(quantizer) == before
    quantizer.read_stage()
    assert quantizer._stage is Stage.READY


def test_loading_takes_the_stage(quantizer):
    ready = copy.deepcopy(quantizer)
    ready(torch.linspace(-1, 2, 31))
    new = copy.deepcopy(quantizer.state_dict())
    quantizer.load_state_dict(ready.state_dict())
    assert quantizer._stage is Stage.READY
    ready.load_state_dict(new)
    assert ready.stage is Stage.NEW


def test_observing_again_forgets_what_was_seen(quantizer):
    with observing([quantizer]), full_precision(quantizer):
        quantizer(torch.tensor([-100.0, 100.0]))
    with observing([quantizer]), full_precision(quantizer):
        quantizer(torch.tensor([-1.0, 2.0]))
    quantizer.initialize()
    torch.testing.assert_close(quantizer.step(), torch.tensor([3 / 15]))


def test_switches_are_given_back_after_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    convert(model)
    first, *rest = named_quantizers(model).values()
    first.enable_fake_quant(False)
    with pytest.raises(RuntimeError, match='lost'), full_precision(model):
        raise RuntimeError('lost')
    assert [q._fake_quant_on for q in (first, *rest)] == [False] + [
        True] * len(rest)


def test_a_shared_quantizer_has_one_name_or_all():
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict(dict(a=layer, b=layer))
    convert(model)
    assert list(named_quantizers(model)) == [
        'a.weight_quantizer', 'a.input_quantizer']
    assert list(named_quantizers(model, remove_duplicate=False)) == [
        'a.weight_quantizer', 'a.input_quantizer', 'b.weight_quantizer',
        'b.input_quantizer']


@pytest.mark.parametrize('axis', [0, 1, -1])
def test_along_channels(axis):
    x = torch.randn(3, 4, 5)
    value = torch.arange(x.shape[axis])
    spread = along_channels(value, x, axis).expand(x.shape)
    for index in range(x.shape[axis]):
        assert (spread.select(axis, index) == index).all()
    assert along_channels(value, x, None) is value


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
