"""Batch norms set anew: against the formula, and what is left alone."""

import copy

import pytest
import torch
from torch import nn

from fpq_plugin import calibrate, convert, reestimate_batch_norms


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return [torch.randn(6, 3, 8, 8) for _ in range(3)]


@pytest.fixture
def model(batches):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    for x in batches:
        net(x)
    convert(net, weight=dict(bits=2), activation=dict(bits=2),
            perturbation=dict(p=1.0), first_last_bits=None)
    calibrate(net, batches)
    return net


def test_statistics_are_the_average_over_the_batches_without_noise(
        model, batches):
    before = copy.deepcopy(model)
    assert reestimate_batch_norms(model, iter(batches)) == ['1', '5']
    own = copy.deepcopy(before).eval()
    with torch.no_grad():
        first = [own[0](x).double() for x in batches]
        second = []
        for x in first:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            x = (x - mean.view(1, -1, 1, 1)) / (
                var.view(1, -1, 1, 1) + own[1].eps).sqrt()
            second.append(own[4](x.relu().float()).double())
    for norm, outputs in ((model[1], first), (model[5], second)):
        for found, wanted in (
                (norm.running_mean, [x.mean((0, 2, 3)) for x in outputs]),
                (norm.running_var, [x.var((0, 2, 3)) for x in outputs])):
            torch.testing.assert_close(
                found.double(), torch.stack(wanted).mean(0), rtol=1e-4,
                atol=1e-5)
    changed = {'1.running_mean', '1.running_var', '5.running_mean',
               '5.running_var'}
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value) == (
            name not in changed)
    assert model[1].momentum == 0.1


@pytest.mark.parametrize('training', [True, False])
def test_modes_gradients_and_the_generator_stay(model, batches, training):
    model.train(training)
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    reestimate_batch_norms(model, batches)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


class Spare(nn.Module):
    """Norms of each kind that is to be left alone, and one that is not."""

    def __init__(self):
        super().__init__()
        self.kept = nn.BatchNorm2d(3, momentum=0.0)
        self.without = nn.BatchNorm2d(3, track_running_stats=False)
        self.frozen = nn.BatchNorm2d(3)
        self.spare = nn.BatchNorm2d(3)
        self.live = nn.BatchNorm2d(3)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        return self.live(self.frozen(self.without(self.kept(x))))


@pytest.mark.parametrize('training', [True, False])
def test_what_training_does_not_update_or_no_batch_reaches_stays(
        batches, training):
    model = Spare().train(training)
    for norm in (model.kept, model.frozen, model.spare, model.live):
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(2.0)
    before = copy.deepcopy(model.state_dict())
    assert reestimate_batch_norms(model, batches) == ['live']
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (
            name not in ('live.running_mean', 'live.running_var'))
    for norm in (nn.LayerNorm(8), Spare().kept):
        assert reestimate_batch_norms(norm, batches) == []


def test_after_an_error_all_is_as_it_was(model, batches):
    before = copy.deepcopy(model.state_dict())

    def fail(model, batch):
        model(batch)
        raise KeyError('label')

    with pytest.raises(KeyError):
        reestimate_batch_norms(model, batches, fail)
    with pytest.raises(ValueError, match='got no batch'):
        reestimate_batch_norms(model, [])
    with pytest.raises(ValueError, match='DataParallel'):
        reestimate_batch_norms(nn.DataParallel(model), batches)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert [model[n].momentum for n in (1, 5)] == [0.1, 0.1]
