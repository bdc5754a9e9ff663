"""A quantizer's life: new, observing, ready, idle."""

import copy

import pytest
import torch
from torch import nn

from fpq_plugin import LSQFakeQuantize, TorchAOFakeQuantize, convert
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
