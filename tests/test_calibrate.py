"""Calibration: ranges, modes, what it leaves alone, what it refuses."""

import sys
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fpq_plugin import add_joints, calibrate, convert
from fpq_plugin.calibrate import uninitialized
from fpq_plugin.layers import quantized_layers


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5),
        nn.Conv2d(8, 4, 3))


def test_ranges_are_those_of_the_full_precision_model():
    model = net()
    batches = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    model.eval()
    with torch.no_grad():
        hidden = torch.cat([model[:3](x) for x in batches])
    model.train()
    convert(model, activation=dict(bits=4))
    calibrate(model, iter(batches))
    step = model[3].input_quantizer.step().item()
    low, high = hidden.min().item(), hidden.max().item()
    assert step == pytest.approx((high - low) / 255, rel=1e-5)
    zero = model[3].input_quantizer.zero_point.item()
    assert zero == round(255 - high / step)
    expected = 2 * model[3].weight.detach().abs().amax((1, 2, 3)) / 255
    torch.testing.assert_close(model[3].weight_quantizer.step(), expected)
    assert not uninitialized(model)


def test_modes_statistics_and_generator_stay():
    model = net().train()
    model[1].eval()
    convert(model)
    modes = [m.training for m in model.modules()]
    mean = model[1].running_mean.clone()
    state = torch.get_rng_state()
    batches = [torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)]
    calibrate(model, batches)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_initialized_is_not_calibrated_again():
    model = net()
    convert(model)
    calibrate(model, [torch.randn(2, 3, 8, 8)])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calibrate(model, [100 * torch.randn(2, 3, 8, 8)])
    assert all(torch.equal(v, before[k])
               for k, v in model.state_dict().items())


def test_a_layer_that_no_batch_reaches_is_told_and_learns_later():

    class Branches(nn.Module):

        def __init__(self):
            super().__init__()
            self.main, self.aux = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.main(x) + (self.aux(x) if self.training else 0)

    model = Branches()
    convert(model)
    told = []
    calibrate(model, [torch.randn(8, 4)], warn=told.append)
    assert len(told) == 1
    assert 'aux' in told[0]
    assert 'main' not in told[0]
    model.train()(torch.randn(8, 4))
    assert not uninitialized(model)


def test_a_custom_forward_and_argument_tuples():
    model = nn.Bilinear(2, 2, 2)
    assert not quantized_layers(model)
    model = nn.Sequential(nn.Linear(4, 4))
    convert(model)
    calibrate(model, [dict(x=torch.randn(3, 4))],
              forward=lambda m, batch: m(batch['x']))
    assert not uninitialized(model)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_range_that_is_not_finite_names_the_layer(value):
    model = net()
    convert(model)
    x = torch.randn(2, 3, 8, 8)
    x[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r'calibration: 0\.input_quantizer'):
        calibrate(model, [x])


def test_fake_quantization_is_on_again_after_an_error():
    model = net()
    convert(model)
    with pytest.raises(RuntimeError):
        calibrate(model, [torch.randn(2, 7, 8, 8)])
    calibrate(model, [torch.randn(2, 3, 8, 8)])
    model.eval()
    out = model[3].quantized_input(torch.randn(2, 8, 6, 6))
    assert out.unique().numel() <= 256


class OneInput(nn.Module):

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x).relu())


class OfTransformers(OneInput):
    """Takes its batch by name, as transformers' models do."""

    def forward(self, inputs=None, mask=None, labels=None, **kwargs):
        return super().forward(inputs * mask)


class OfMMEngine(BaseModel):

    def __init__(self):
        super().__init__()
        self.net = OneInput()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert mode == 'tensor'
        return self.net(inputs)


@dataclass
class Batch:
    x: torch.Tensor


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(6)


def state_after(model, batches, **options):
    convert(model)
    calibrate(model, batches, **options)
    return list(model.state_dict().values())


@pytest.mark.parametrize(('model', 'batch'), [
    (OneInput, (X, LABELS)),
    (OneInput, [X, LABELS]),
    (OneInput, [X]),
    (OneInput, dict(x=X)),
    (OfTransformers, dict(inputs=X, mask=torch.ones(6, 4), labels=LABELS)),
    (OfTransformers, UserDict(inputs=X, mask=torch.ones(6, 4))),
    (OfMMEngine, dict(inputs=X, data_samples=[1] * 6)),
    (OfMMEngine, (X, LABELS)),
])
def test_a_batch_that_can_be_taken_in_one_way_is_taken(model, batch):
    found = state_after(model(), [batch])
    for own, value in zip(found, state_after(OneInput(), [X])):
        assert torch.equal(own, value)


def test_a_data_loader_with_labels_and_workers():
    loader = DataLoader(TensorDataset(X, LABELS), 2, num_workers=1)
    found = state_after(OneInput(), loader)
    for own, value in zip(found, state_after(OneInput(), [X])):
        assert torch.equal(own, value)


@pytest.mark.parametrize('batch', [
    (X, torch.zeros(6)),  # targets, or a second input
    [X, X],  # two images of one batch
    (LABELS, LABELS),
    (X[:, 0], LABELS),  # an input of one axis is no batch
    (X, LABELS, LABELS),
    dict(image=X, label=LABELS),
    dict(x=X, label=LABELS),
    Batch(X),
    [dict(x=X)],
    'image.png',
    None,
])
def test_any_other_batch_is_refused_and_names_forward(batch):
    model = OneInput()
    convert(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(TypeError, match='forward of OneInput .* forward='):
        calibrate(model, [X, batch])
    assert all(torch.equal(v, before[k])
               for k, v in model.state_dict().items())
    assert len(uninitialized(model)) == 4


@pytest.mark.parametrize('batches', [X, dict(x=X), 'path'])
def test_one_batch_for_an_iterable_is_refused(batches):
    model = OneInput()
    convert(model)
    with pytest.raises(TypeError, match=r'calibrate\(model, \[batch\]\)'):
        calibrate(model, batches)


def test_no_batch_is_an_error():
    model, batches = OneInput(), iter([X])
    list(batches)
    convert(model)
    for none in ([], batches, DataLoader(TensorDataset(X[:0]))):
        with pytest.raises(ValueError, match='got no batch'):
            calibrate(model, none)
    assert len(uninitialized(model)) == 4


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_after_an_error_the_model_is_as_before(backend):
    """Also where some quantizers had their step before the error."""
    model = OneInput()
    convert(model, backend=backend)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for batches in ([torch.full((2, 4), torch.nan)], [X, X[:, :3]]):
        with pytest.raises((ValueError, RuntimeError)):
            calibrate(model, batches)
        assert all(torch.equal(v, before[k])
                   for k, v in model.state_dict().items())
        assert len(uninitialized(model)) == 4
    calibrate(model, [X])
    twin = OneInput()
    convert(twin, backend=backend)
    calibrate(twin, [X])
    for own, value in zip(model.state_dict().values(),
                          twin.state_dict().values()):
        assert torch.equal(own, value)


def test_a_second_calibration_is_told_that_it_does_nothing():
    model, told = OneInput(), []
    convert(model)
    calibrate(model, [X], warn=told.append)
    assert told == []
    calibrate(model, [X], warn=told.append)
    assert 'had nothing to do' in told[0]


def test_a_wrapped_model_is_refused():
    model = net()
    convert(model)
    with pytest.raises(ValueError, match='calibrate: the model is wrapped by '
                       'DataParallel'):
        calibrate(nn.DataParallel(model), [torch.randn(2, 3, 8, 8)])


def test_weights_are_no_inputs_that_no_batch_reached():
    model, told = net(), []
    convert(model)
    calibrate(model, [torch.randn(2, 3, 8, 8)], warn=told.append)
    assert told == []
    assert not uninitialized(model)


def test_an_input_of_zeros_is_told():
    model, told = net(), []
    convert(model)
    calibrate(model, [torch.zeros(2, 3, 8, 8)], warn=told.append)
    assert len(told) == 1
    assert 'only zeros in the input of 0, which stays float' in told[0]


class Counting(nn.Module):
    """Counts its training forwards."""

    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return x


def test_buffers_that_training_moves_are_put_back():
    model = nn.Sequential(net(), Counting())
    convert(model)
    calibrate(model, [torch.randn(2, 3, 8, 8)], training=True)
    assert model[1].calls == 0
    assert not uninitialized(model)


def test_in_training_mode_batch_norms_use_their_statistics():
    """As in the forwards that the steps are for at first."""
    x, steps = 3 * torch.randn(8, 3, 8, 8) + 1, []
    for training in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8),
                              nn.Conv2d(8, 4, 3))
        convert(model)
        calibrate(model, [x], training=training)
        steps.append(model[2].input_quantizer.step())
        assert model[1].num_batches_tracked == 0
    torch.testing.assert_close(*steps)


def test_a_model_without_quantized_layers_is_refused():
    with pytest.raises(ValueError, match='no quantized layer: call convert'):
        calibrate(net(), [torch.rand(2, 3, 8, 8)])


def test_joints_whose_hooks_are_lost_are_refused():
    x = torch.rand(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, 2))
    convert(model)
    add_joints(model, x, target='onnxruntime')
    joined = next(module for module in model.modules()
                  if 'output_quantizer' in module._modules)
    joined._forward_hooks.clear()
    with pytest.raises(ValueError, match='of a joint and not its hook'):
        calibrate(model, [x])


def test_a_loader_that_may_have_no_end_is_told(monkeypatch):
    monkeypatch.setattr(sys.modules['fpq_plugin.calibrate'],
                        'MANY_BATCHES', 3)
    told = []
    for number in (2, 3, 9):
        model = nn.Sequential(nn.Linear(4, 2))
        convert(model)
        calibrate(model, iter(torch.randn(number, 5, 4)), warn=told.append)
        assert len(told) == {2: 0, 3: 1, 9: 2}[number]
    assert 'calibration has had 3 batches and goes on' in told[0]
