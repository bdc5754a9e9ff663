"""Tensors that are empty, zero, constant, of one element, of other types."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_rank import KINDS, converted

from fpq_plugin import (
    CSDLoss,
    Distiller,
    DoReFaFakeQuantize,
    LSQFakeQuantize,
    TorchAOFakeQuantize,
    calibrate,
    convert,
    param_groups,
)
from fpq_plugin.quantizers import Stage, weight_to_come

# BatchQuant takes (N, C, L).
each_kind = pytest.mark.parametrize('kind', [k for k in KINDS
                                             if k != 'statistics'])


def data(number=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 4, generator=generator)


@each_kind
def test_an_empty_tensor_is_no_observation(kind):
    model, twin = converted(kind), converted(kind)
    calibrate(model, [data()[:0], data(), data()[:0]])
    calibrate(twin, [data()])
    for key, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@each_kind
def test_an_empty_batch_trains_and_moves_nothing(kind):
    model = converted(kind)
    calibrate(model, [data()])
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(data()[:0]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.eval()(data()[:0]).shape == (0, 2)


@each_kind
def test_without_calibration_the_first_batch_may_be_empty(kind):
    model = converted(kind).train()
    model(data()[:0]).sum().backward()
    model(data()).sum().backward()
    assert model[0].input_quantizer.has_step()


@each_kind
def test_after_zeros_the_first_other_batch_gives_the_step(kind):
    model, twin, told = converted(kind), converted(kind), []
    calibrate(model, [torch.zeros(5, 4)], warn=told.append)
    assert 'saw only zeros in the input of 0' in told[0]
    quantizer = model[0].input_quantizer
    assert quantizer.stage is Stage.WAITING
    assert quantizer.is_initialized()
    assert not quantizer.has_step()
    reloaded = converted(kind)
    reloaded.load_state_dict(model.state_dict())
    for waiting in (model, reloaded):
        assert torch.isfinite(waiting.eval()(torch.zeros(3, 4))).all()
        waiting.train()(torch.zeros(3, 4)).sum().backward()
        assert waiting[0].input_quantizer.is_waiting()
        x = 3 * data().abs()
        x.requires_grad_()
        out = waiting(x)
        out.sum().backward()
        assert waiting[0].input_quantizer.has_step()
        assert out.std(0).min() > 0
        assert x.grad.abs().max() > 0
    calibrate(twin, [x.detach()])
    torch.testing.assert_close(quantizer.step(),
                               twin[0].input_quantizer.step())


@each_kind
def test_after_zeros_other_data_calibrate(kind):
    model, twin = converted(kind), converted(kind)
    calibrate(model, [torch.zeros(5, 4)], warn=lambda text: None)
    for each in (model, twin):
        calibrate(each, [data()])
    for key, value in twin[0].state_dict().items():
        assert torch.equal(model[0].state_dict()[key], value), key


@each_kind
def test_a_layer_whose_weight_is_zero_learns(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    backend, weight, activation = KINDS[kind]
    convert(model, backend=backend, weight=dict(type=weight, bits=4),
            activation=dict(type=activation, bits=4), first_last_bits=None)
    x = data(64)
    calibrate(model, [x])
    target = x[:, :2].clone()
    optimizer = torch.optim.SGD(param_groups(model, lr=0.3), lr=0.3)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize('cls', [LSQFakeQuantize, TorchAOFakeQuantize])
@pytest.mark.parametrize('symmetric', [True, False])
def test_a_zero_channel_has_the_mean_range_of_the_others(cls, symmetric):
    weight = torch.randn(4, 50)
    weight[2] = 0
    quantizer = cls(symmetric=symmetric, per_channel=True, num_channels=4)
    quantizer.observe(weight)
    quantizer.initialize()
    others = [0, 1, 3]
    low, high = weight[others].amin(1).mean(), weight[others].amax(1).mean()
    width = 2 * max(-low, high) if symmetric else high - low
    # torch.ao's symmetric range has an integer less.
    assert quantizer.step()[2].item() == pytest.approx(
        (width / 255).item(), rel=1e-2)
    grad = torch.zeros(4, 50).uniform_(-0.1, 0.1).requires_grad_()
    quantizer.train()(grad).sum().backward()
    assert grad.grad[2].all()


def test_dorefa_lets_the_gradient_of_zeros_through():
    quantizer = DoReFaFakeQuantize(4, per_channel=True, num_channels=2)
    weight = torch.tensor([[0.0, 0.0], [0.5, -1.0]], requires_grad=True)
    quantizer(weight).sum().backward()
    assert weight.grad[0].tolist() == [1.0, 1.0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.data())
def test_only_zeros_are_replaced(shape, choices):
    axis = choices.draw(st.integers(0, len(shape) - 1))
    weight = torch.zeros(shape)
    rows = weight.movedim(axis, 0)
    for i in range(shape[axis]):
        if choices.draw(st.booleans()):
            rows[i] = 2.0
    found = weight_to_come(weight, axis)
    assert found.shape == weight.shape
    assert found.numel() == 0 or found.any()
    assert torch.equal(found[weight != 0], weight[weight != 0])
    if weight.any():
        assert weight_to_come(weight) is weight


def test_a_constant_is_held():
    for value in (2.0, -3.0, 1e-6):
        x = torch.full((3, 4), value)
        quantizer = LSQFakeQuantize(bits=4)
        torch.testing.assert_close(quantizer(x), x)


def test_only_negatives_in_a_range_without_them_are_told():
    quantizer = LSQFakeQuantize(symmetric=True, signed=False)
    quantizer.observe(-torch.rand(5) - 1)
    with pytest.warns(UserWarning, match='negative and will become 0'):
        quantizer.initialize()


def test_layers_of_one_element():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    teacher = copy.deepcopy(model)
    convert(model)
    calibrate(model, [torch.tensor([[2.0]])])
    distiller = Distiller(model, teacher, CSDLoss())
    loss = model(torch.tensor([[1.5]])).sum() + distiller.loss()
    loss.backward()
    assert torch.isfinite(loss)


@each_kind
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16,
                                   torch.bfloat16])
def test_other_floating_types_are_kept(kind, dtype):
    model = converted(kind)
    calibrate(model, [data()])
    quantizer = model[0].input_quantizer.eval()
    out = quantizer(data().to(dtype))
    assert out.dtype is dtype
    assert (out.float() - data()).abs().max() < quantizer.step().max() + 0.02


@each_kind
@pytest.mark.parametrize('dtype', [torch.int64, torch.bool, torch.complex64])
def test_other_types_are_refused(kind, dtype):
    model = converted(kind)
    calibrate(model, [data()])
    with pytest.raises(TypeError, match='floating-point tensors'):
        model[0].input_quantizer(data().to(dtype))
    with pytest.raises(TypeError, match='floating-point tensors'):
        LSQFakeQuantize()(data().to(dtype))


@each_kind
@pytest.mark.parametrize('made', ['converted', 'calibrated', 'first'])
def test_what_inference_mode_made_trains(kind, made):
    twin = converted(kind)
    if made == 'converted':
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        backend, weight, activation = KINDS[kind]
        with torch.inference_mode():
            convert(model, backend=backend, weight=dict(type=weight, bits=8),
                    activation=dict(type=activation, bits=8))
            calibrate(model, [data()])
    else:
        model = converted(kind)
        with torch.inference_mode():
            if made == 'first':
                model.train()(data())
            else:
                calibrate(model, [data()])
    if made != 'first':
        calibrate(twin, [data()])
        assert torch.equal(model.eval()(data()), twin.eval()(data()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model.train()(data()).sum().backward()
        optimizer.step()
        with torch.inference_mode():
            model(data())
            model.eval()(data())
    assert torch.isfinite(model[0].weight.grad).all()
