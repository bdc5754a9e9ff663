"""The mse observer against a brute-force search; shapes, switches, state."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin import calibrate, convert
from fpq_plugin.quantizers import (
    LogLSQFakeQuantize,
    LSQFakeQuantize,
    PACTFakeQuantize,
    Stage,
    TorchAOFakeQuantize,
)
from fpq_plugin.quantizers.grid import mse_range, weight_to_come


def error_64(x, bits, low, high, symmetric):
    """Mean squared error of equations (1), (4) and (5), one element a time."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        quant_min, quant_max = -2**(bits - 1), 2**(bits - 1) - 1
        step = 2 * max(-low, high) / (2**bits - 1)
        zero = 0
    else:
        quant_min, quant_max = 0, 2**bits - 1
        step = (high - low) / (2**bits - 1)
        zero = np.clip(np.round(quant_max - high / step), 0, quant_max)
    total = 0.0
    for value in x:
        integer = np.clip(np.round(value / step) + zero, quant_min, quant_max)
        total += ((integer - zero) * step - value)**2
    return total / len(x)


@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4]), st.booleans(),
       st.booleans())
def test_no_share_of_the_range_has_a_smaller_error(seed, bits, symmetric,
                                                   relu):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, generator=generator)**3
    x = x.relu() if relu else x
    quantizer = LSQFakeQuantize(bits, symmetric=symmetric, observer='mse')
    quantizer.observe(x)
    quantizer.initialize()
    found = (quantizer.eval()(x) - x).double().square().mean().item()
    values = x.double().tolist()
    least = min(
        error_64(values, bits, min(values) * k / 64, max(values) * k / 64,
                 symmetric) for k in range(1, 65))
    assert found <= least * (1 + 1e-4) + 1e-12


@pytest.mark.parametrize('kind', [LSQFakeQuantize, LogLSQFakeQuantize,
                                  TorchAOFakeQuantize])
@given(bits=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_a_narrow_range_has_no_lowest_integer(kind, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 40, generator=generator)
    quantizer = kind(bits, symmetric=True, per_channel=True, num_channels=5,
                     narrow_range=True)
    quantizer.observe(x)
    quantizer.initialize()
    found = quantizer.eval()(x).detach()
    step = quantizer.step()
    assert torch.allclose(step, x.abs().amax(1) / (2**(bits - 1) - 1))
    most = 2**(bits - 1) - 1
    expected = torch.fake_quantize_per_channel_affine(
        x, step, torch.zeros(5, dtype=torch.int32), 0, -most, most)
    assert torch.allclose(found, expected)
    integers = torch.round(found / step[:, None])
    assert integers.abs().max() == most  # the range is that of the data
    # Which is what trained steps clip.
    far = torch.round(quantizer(-9 * x.abs()).detach() / step[:, None])
    assert far.min() == -most


@pytest.mark.parametrize('kind', [LSQFakeQuantize, TorchAOFakeQuantize])
def test_unsigned_integers_have_no_narrow_range(kind):
    with pytest.raises(ValueError, match='narrow_range leaves out the lowest'):
        kind(narrow_range=True)


def test_each_channel_has_its_own_share():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    weight[2, 0, 0, 0] = 30.0
    steps = {}
    for observer in ('min_max', 'mse'):
        quantizer = LSQFakeQuantize(4, symmetric=True, per_channel=True,
                                    observer=observer)
        quantizer.observe(weight)
        quantizer.initialize()
        steps[observer] = quantizer.step()
        alone = LSQFakeQuantize(4, symmetric=True, observer=observer)
        alone.observe(weight[2])
        alone.initialize()
        assert torch.equal(alone.step()[0], quantizer.step()[2])
    assert (steps['mse'] <= steps['min_max']).all()
    assert (steps['mse'] < steps['min_max']).any()


def test_long_tensors_are_sampled_and_draw_nothing_from_the_run():
    """The error is within 2 % of the whole tensor's least."""
    torch.manual_seed(0)
    x = torch.randn(1, 16, 128, 128).relu()
    quantizer = LSQFakeQuantize(2, observer='mse')
    state = torch.get_rng_state()
    quantizer.observe(x)
    assert torch.equal(state, torch.get_rng_state())
    quantizer.initialize()
    least = torch.inf
    for k in range(1, 65):
        step = x.max() * k / 64 / 3
        error = ((x / step).round().clamp(0, 3) * step - x).square().mean()
        least = min(least, error)
    found = (quantizer.eval()(x) - x).square().mean()
    assert found <= 1.02 * least


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_through_convert_and_in_pact(backend):
    """Of an outlier of 2-bit ReLU maps less than half is kept."""
    torch.manual_seed(0)
    x = torch.randn(64, 1, 8, 8).relu()
    x[0, 0, 0, 0] = 20
    for kind in (LSQFakeQuantize, PACTFakeQuantize):
        highest = {}
        for observer in ('min_max', 'mse'):
            model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
            convert(
                model,
                first_last_bits=None,
                backend=backend,
                activation=dict(type=kind.__name__, bits=2, observer=observer))
            calibrate(model, [x])
            held = model[0].eval().input_quantizer(x)
            highest[observer] = held.max().item()
        assert highest['min_max'] == pytest.approx(20, rel=1e-5)
        assert highest['mse'] < 10


def test_another_observer_is_refused():
    with pytest.raises(ValueError, match="observer must be one of .*'mae'"):
        LSQFakeQuantize(4, observer='mae')


def test_a_share_of_one_64th_is_tried():
    """Here the smallest range has the smallest error."""
    low, high = mse_range(
        -torch.ones(2), torch.ones(2), torch.zeros(2, 5),
        lambda rows, low, high: rows + high[:, None])
    assert low.tolist() == [-1 / 64] * 2
    assert high.tolist() == [1 / 64] * 2


def test_defaults_before_the_first_tensor():
    assert LSQFakeQuantize(ch_axis=3).ch_axis == -1
    lazy = LSQFakeQuantize(per_channel=True)
    assert lazy.ch_axis == 0
    assert lazy.scale.shape == lazy.zero_point.shape == (1, )


@pytest.mark.parametrize('cls', [LSQFakeQuantize, LogLSQFakeQuantize])
def test_all_of_its_state_is_made_on_the_device(cls):
    quantizer = cls(factory_kwargs=dict(device='meta'))
    assert all(value.is_meta for value in quantizer.state_dict().values())
    assert quantizer.min_val.is_meta
    assert quantizer.max_val.is_meta


def test_the_switches_of_torch_ao():
    """Observed alone; observed no more; quantized."""
    x = torch.linspace(-1, 2, 16)
    quantizer = LSQFakeQuantize(bits=4)
    quantizer.disable_fake_quant()
    quantizer.enable_observer()
    assert quantizer.observer_enabled.item() == 1
    assert quantizer(x) is x
    assert quantizer.stage is Stage.OBSERVING
    quantizer.disable_observer()
    assert quantizer.observer_enabled.item() == 0
    assert quantizer.stage is Stage.READY
    quantizer.enable_fake_quant()
    quantizer(10 * x)
    assert quantizer.step().item() == pytest.approx(3 / 15)
    assert torch.equal(quantizer(quantizer(x)), quantizer(x))
    assert not torch.equal(quantizer(x), x)


def test_an_observer_that_saw_nothing_leaves_no_step():
    quantizer = LSQFakeQuantize(bits=4)
    quantizer.enable_observer()
    quantizer.disable_observer()
    assert quantizer.stage is Stage.NEW


@pytest.mark.parametrize('cls', [LSQFakeQuantize, LogLSQFakeQuantize])
def test_channels_that_the_first_tensor_tells_are_kept(cls):
    """The second tensor adds to the ranges, and makes none anew."""
    batches = torch.randn(2, 5, 7) * torch.arange(1, 6)[:, None]
    steps = []
    for channels in (None, 5):
        quantizer = cls(bits=8, per_channel=True, symmetric=True,
                        num_channels=channels)
        for x in batches:
            quantizer.observe(x)
        quantizer.initialize()
        steps.append(quantizer.step())
    assert torch.equal(*steps)
    assert steps[0].unique().numel() == 5


def test_a_part_of_a_state_is_loaded():
    quantizer = LSQFakeQuantize(bits=4, per_channel=True, num_channels=3)
    state = quantizer.state_dict()
    del state['zero_point']
    state['scale'] = torch.tensor([1.0, 2.0, 3.0])
    found = quantizer.load_state_dict(state, strict=False)
    assert found.missing_keys == ['zero_point']
    assert quantizer.scale.tolist() == [1, 2, 3]


def test_a_weight_to_come_is_spread_evenly():
    """Over +-1 / sqrt(n), as torch draws weights; a single one is 1."""
    found = weight_to_come(torch.zeros(2, 9))
    row = torch.tensor([-4, -3, -2, -1, 0, 1, 2, 3, 4]) / 12
    torch.testing.assert_close(found, row.expand(2, 9))
    assert weight_to_come(torch.zeros(3, 1)).tolist() == [[1]] * 3


def test_a_range_is_forgotten_once_it_is_a_step():
    quantizer = LSQFakeQuantize(bits=4)
    quantizer.observe(torch.tensor([-9.0, 9.0]))
    quantizer.initialize()
    assert not quantizer.was_observed()
    quantizer.observe(torch.tensor([0.0, 1.5]))
    quantizer.initialize()
    assert quantizer.step().item() == pytest.approx(0.1)


def test_stages_keep_the_numbers_that_checkpoints_have():
    assert {stage.name: stage.value for stage in Stage} == dict(
        NEW=0, READY=1, IDLE=2, OBSERVING=3, WAITING=4)
    assert len(Stage) == 5


@pytest.mark.parametrize('options', [
    dict(symmetric=True, signed=True), dict(symmetric=False)])
def test_no_word_of_negatives_where_a_range_holds_them(options):
    quantizer = LSQFakeQuantize(bits=4, **options)
    quantizer.observe(torch.tensor([-3.0, -1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        quantizer.initialize()


def test_a_range_of_nothing_has_a_step_of_one():
    quantizer = LSQFakeQuantize(bits=4)
    step, zero = quantizer._affine(torch.zeros(2), torch.zeros(2))
    assert step.tolist() == [1, 1]
    assert zero.tolist() == [15, 15]


@pytest.mark.parametrize('narrow', [-1, 2, 1, 3.0, 'no', None])
@pytest.mark.parametrize('kind', [LSQFakeQuantize, TorchAOFakeQuantize])
def test_a_narrow_range_is_asked_for_or_not(kind, narrow):
    with pytest.raises(TypeError, match='narrow_range must be True or False'):
        kind(symmetric=True, narrow_range=narrow)
    with pytest.raises(ValueError, match=r'^weight\.narrow_range: must be'):
        convert(nn.Sequential(nn.Linear(2, 2)), weight=dict(
            type=kind.__name__, narrow_range=narrow))


@pytest.mark.parametrize('scale', [1e-8, 1e-7])
def test_values_too_small_for_any_step_are_told(scale):
    quantizer = LSQFakeQuantize(bits=8)
    quantizer.observe(scale * torch.randn(100))
    with pytest.warns(UserWarning, match='ask for a step of .* and no step '
                                         'is below 1.2e-07'):
        quantizer.initialize()


def test_values_wider_than_float32_are_refused():
    quantizer = LSQFakeQuantize(bits=8)
    quantizer.observe(torch.tensor([-2e38, 2e38]))
    with pytest.raises(ValueError, match='range is .-2e.38, 2e.38., wider '):
        quantizer.initialize()


@pytest.mark.parametrize(('kind', 'lost'), [
    *((kind, lost) for kind in (LSQFakeQuantize, LogLSQFakeQuantize,
                                PACTFakeQuantize) for lost in (0, 1)),
    (TorchAOFakeQuantize, 2)])
def test_a_calibrated_state_without_its_step_is_refused(kind, lost):
    """``strict=False`` would leave the step at 1."""
    quantizer = kind(bits=4)
    quantizer.observe(torch.randn(100))
    quantizer.initialize()
    state = quantizer.state_dict()
    keys = [key for key in state if key not in ('bits', 'initialized')]
    assert keys[lost] in ('scale', 'log_scale', 'clip', 'zero_point',
                          'fake.scale')
    del state[keys[lost]]
    with pytest.raises(RuntimeError, match=f'{keys[lost]} is missing in the '
                                           'state'):
        kind(bits=4).load_state_dict(state, strict=False)
    del state['initialized']  # a part of a state, which says nothing of it
    found = kind(bits=4).load_state_dict(state, strict=False)
    assert set(found.missing_keys) == {keys[lost], 'initialized'}


def test_type_and_bits_are_told_before_what_is_missing():
    trained = PACTFakeQuantize(bits=4)
    trained.observe(torch.randn(100))
    trained.initialize()
    for other, told in ((LSQFakeQuantize(4), 'PACTFakeQuantize in the state'),
                        (LSQFakeQuantize(8), 'the state has 4 bits')):
        with pytest.raises(RuntimeError, match=told):
            other.load_state_dict(trained.state_dict(), strict=False)


class Derived(LSQFakeQuantize):
    """A user's, which keeps more for itself."""

    def __init__(self, bits=4):
        super().__init__(bits)
        self.register_buffer('more', torch.ones(1), persistent=False)

    def _per_channel(self):
        return *super()._per_channel(), self.more


def test_what_is_never_stored_is_not_missed():
    quantizer = Derived()
    quantizer.observe(torch.randn(100))
    quantizer.initialize()
    Derived().load_state_dict(quantizer.state_dict())


def test_a_zero_point_tells_where_metadata_is_lost():
    asymmetric, symmetric = (LSQFakeQuantize(bits=4, symmetric=symmetric)
                             for symmetric in (False, True))
    asymmetric.observe(torch.randn(100))
    asymmetric.initialize()
    with pytest.raises(RuntimeError, match='asymmetric in the state'):
        symmetric.load_state_dict(dict(asymmetric.state_dict()))
