"""A step that is known before there is data."""

import pytest
import torch

from fpq_plugin.quantizers import FixedFakeQuantize, Stage, observing


@pytest.fixture(params=[255, 256])
def quantizer(request):
    return FixedFakeQuantize(request.param)


def test_ready_from_the_start(quantizer):
    x = torch.rand(1000)
    wanted = (x * quantizer.levels).round().clamp(0, 255) / quantizer.levels
    torch.testing.assert_close(quantizer.eval()(x), wanted)
    assert quantizer.stage is Stage.READY
    assert bool(quantizer.initialized)
    assert not list(quantizer.parameters())


def test_observing_changes_nothing(quantizer):
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    with observing([quantizer]):
        quantizer(5 * torch.rand(10))
    quantizer.enable_observer()
    quantizer(5 * torch.rand(10))
    quantizer.enable_observer(False)
    assert quantizer.stage is Stage.READY
    assert all(torch.equal(value, before[key])
               for key, value in quantizer.state_dict().items())


def test_the_state_tells_its_levels(quantizer):
    other = FixedFakeQuantize(511 - quantizer.levels)
    FixedFakeQuantize(quantizer.levels).load_state_dict(
        quantizer.state_dict())
    with pytest.raises(RuntimeError, match=f'levels={quantizer.levels} in'):
        other.load_state_dict(quantizer.state_dict())
