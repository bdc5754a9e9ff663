"""Brevitas's stock quantizers under FPQ: values, overrides, statistics."""

import copy

import pytest
import torch
from brevitas import quant
from brevitas.graph.calibrate import calibration_mode
from brevitas.inject import ExtendedInjector
from brevitas.nn import QuantConv2d, QuantLinear
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerChannelFloatDecoupled,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from runs import train, weights
from torch import nn

from brevitas_adapters import StockQuantizer, register_injector
from brevitas_adapters.backend import BREVITAS
from brevitas_adapters.stock import refuse_let
from fpq_plugin import calibrate, convert
from fpq_plugin.param_groups import quantizer_parameters

ACTIVATIONS = [Int8ActPerTensorFloat, Uint8ActPerTensorFloat,
               ShiftedUint8ActPerTensorFloat]
LEARNED = dict(scaling_impl_type='parameter_from_stats')


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
                         nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU(),
                         nn.Flatten(), nn.Linear(8 * 16, 5))


def converted(activation=ShiftedUint8ActPerTensorFloat, bits=4, let=None,
              **more):
    model = net()
    convert(model, backend='brevitas', first_last_bits=None,
            weight=dict(type='Int8WeightPerChannelFloat', bits=bits, let=let),
            activation=dict(type=activation.__name__, bits=bits), **more)
    return model


@pytest.fixture
def x():
    return torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_the_values_are_brevitas_own(activation, bits, x):
    """Held against a plain Brevitas layer that saw the same data."""
    model = converted(activation, bits)
    calibrate(model, [x])
    plain = QuantConv2d(3, 8, 3, weight_quant=Int8WeightPerChannelFloat,
                        weight_bit_width=bits, input_quant=activation,
                        input_bit_width=bits, input_collect_stats_steps=1)
    with torch.no_grad():
        plain.weight.copy_(model[0].weight)
        plain.bias.copy_(model[0].bias)
    plain.train()(x)
    model.eval()
    torch.testing.assert_close(model[0](x), plain.eval()(x))
    torch.testing.assert_close(model[0].input_quant.scale(),
                               plain.input_quant.scale())


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_sfp_is_one_step_wide_and_off_in_eval(activation, x):
    model = converted(activation, perturbation=dict(p=1.0))
    calibrate(model, [x])
    proxy = model[0].input_quant
    clean, noisy = proxy.eval()(x), proxy.train()(x)
    noise = (noisy.value - clean.value) / clean.scale
    assert 0.45 < noise.abs().max() <= 0.5 + 1e-3
    assert torch.equal(proxy.eval()(x).value, clean.value)


@pytest.mark.parametrize('let', [None, LEARNED])
def test_the_state_is_complete_from_construction(let, x):
    """Also as mmengine walks it, which skips Brevitas's own state_dict."""
    model = converted(let=let)
    keys = list(model.state_dict())
    assert list(get_state_dict(model)) == keys
    learned = [k for k in keys if k.endswith('_value')]
    assert len(learned) == (9 if let else 6)
    calibrate(model, [x])
    assert list(model.state_dict()) == keys
    expected = model.eval()(x)
    for load in (lambda m, s: m.load_state_dict(s),
                 lambda m, s: load_state_dict(m, s, strict=True)):
        for state in (model.state_dict(), get_state_dict(model)):
            fresh = converted(let=let)
            fresh[0].weight.data.copy_(model[0].weight)
            load(fresh, state)
            assert torch.equal(fresh.eval()(x), expected)
            # What is loaded is not collected again.
            fresh.train()(100 * x)
            assert torch.equal(fresh.eval()(x), expected)


def test_an_uncalibrated_state_is_calibrated_after_loading(x):
    model = converted()
    model.load_state_dict(converted().state_dict())
    with pytest.raises(RuntimeError, match='no step yet'):
        model.eval()(x)
    calibrate(model, [x, 3 * x])
    scale = model[0].input_quant.scale()
    again = converted()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again[0].input_quant.scale(), scale)
    # Brevitas's average over the batches, of the range of each.
    spread = (x.max() - x.min()) * (1 + 3) / 2 / 15
    torch.testing.assert_close(scale, spread, rtol=0.05, atol=0)


@pytest.mark.parametrize('let', [None, LEARNED])
def test_learned_scales_train_and_none_is_unused(let, x):
    model = converted(let=let, perturbation=dict(p=0.5))
    calibrate(model, [x])
    parameters = quantizer_parameters(model)
    assert len(parameters) == (9 if let else 6)
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    before = {n: p.detach().clone() for n, p in parameters.items()}
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    moved = [n for n, p in parameters.items() if not torch.equal(p, before[n])]
    assert {n.rpartition('.')[0] for n in moved} >= {
        '0.input_quantizer', '2.input_quantizer', '5.input_quantizer'}


def test_copies_are_independent_and_moves_reach_all(x):
    model = converted(let=LEARNED)
    calibrate(model, [x])
    expected = model.eval()(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in quantizer_parameters(twin).values():
            parameter.mul_(2)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)
    model.double()
    torch.testing.assert_close(
        model(x.double()), expected.double(), rtol=1e-4, atol=1e-4)


def test_a_value_that_is_not_finite_names_the_layer(x):
    x[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r'calibration: 0\.input_quantizer'):
        calibrate(converted(), [x])


@pytest.mark.parametrize(('options', 'message'), [
    (dict(weight=dict(type='Uint8ActPerTensorFloat')),
     "weight.type: 'Uint8ActPerTensorFloat' is not registered in BREVITAS WE"),
    (dict(activation=dict(type='Int8WeightPerChannelFloat')),
     "'Int8WeightPerChannelFloat' is not registered in BREVITAS ACTIVATIONS"),
    (dict(activation=dict(type='Uint8ActPerTensorFloat', bits=9)),
     'activation.bits: must be an integer of 2 to 8'),
    (dict(activation=dict(type='Uint8ActPerTensorFloat', symmetric=True)),
     "activation: unknown option 'symmetric'"),
])
def test_wrong_types_and_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        convert(net(), backend='brevitas', **options)


def test_the_names_are_brevitas_only():
    with pytest.raises(ValueError, match='is not registered in MODELS'):
        convert(net(), activation=dict(type='Uint8ActPerTensorFloat'))


def test_a_users_own_injector_by_its_name(x):

    @register_injector
    class NarrowActPerTensorFloat(ShiftedUint8ActPerTensorFloat):
        """Clips a fifth of the values."""
        high_percentile_q = 90.0
        low_percentile_q = 10.0

    try:
        model = converted(NarrowActPerTensorFloat)
        assert isinstance(model[0].input_quantizer, StockQuantizer)
        calibrate(model, [x])
        low, high = x.flatten().quantile(torch.tensor([0.1, 0.9]))
        torch.testing.assert_close(model[0].input_quant.scale(),
                                   (high - low) / 15, rtol=0.02, atol=0)
    finally:
        BREVITAS.activation._module_dict.pop('NarrowActPerTensorFloat')


def test_an_injector_with_another_proxy_is_refused():
    with pytest.raises(ValueError, match='Int8WeightPerChannelFloatDecoupled'
                       '.*not Decoupled'):
        register_injector(Int8WeightPerChannelFloatDecoupled)
    assert issubclass(Int8WeightPerChannelFloatDecoupled, ExtendedInjector)


STOCK = dict(
    fpq__backend='brevitas',
    fpq__weight=dict(type='Int8WeightPerChannelFloat', bits=4, let=LEARNED),
    fpq__activation=dict(type='ShiftedUint8ActPerTensorFloat', bits=4))


@pytest.mark.parametrize('backend', ['brevitas'], indirect=True)
def test_whole_run_with_ema_resumes_to_the_bit(fpq_config, tmp_path):
    more = {**STOCK, 'train_cfg.max_epochs': 2,
            'fpq__perturbation': dict(p=0.5),
            'custom_hooks': [dict(type='EMAHook', momentum=0.2)]}
    train(fpq_config(folder='straight', **more))
    cfg = fpq_config(folder='resumed', resume=True, **more)
    cfg.load_from = str(tmp_path / 'straight/epoch_1.pth')
    train(cfg)
    ends = [weights(tmp_path / name / 'epoch_2.pth')
            for name in ('straight', 'resumed')]
    assert ends[0].keys() == ends[1].keys()
    assert sum(k.endswith('_value') for k in ends[0]) == 17 * 3
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


def test_linear_with_a_plain_weight_quantizer_shares_nothing():
    """A stock quantizer on the user's own layer stays Brevitas's."""
    layer = QuantLinear(4, 4, weight_quant=Int8WeightPerChannelFloat)
    model = nn.Sequential(layer, nn.Linear(4, 4))
    table = convert(model, backend='brevitas')
    assert [row.why for row in table] == [
        'type brevitas.nn.quant_linear.QuantLinear not registered, and it '
        'holds input_quant, output_quant, weight_quant, bias_quant',
        'first layer',
    ]
    assert type(model[0]) is QuantLinear


def convert_with(let):
    model = nn.Sequential(nn.Linear(2, 2))
    convert(model, backend='brevitas',
            activation=dict(type='ShiftedUint8ActPerTensorFloat', let=let))
    return model


@pytest.mark.parametrize(('let', 'message'), [
    (dict(colect_stats_steps=3),
     "let: unknown option 'colect_stats_steps'. Did you mean 'collect_stats"),
    (dict(scaling_impl_type='bogus'), 'Brevitas refuses it'),
    (dict(quant_type='binary'), 'FPQ takes quantizers to integers'),
    (dict(bit_width=3), "let: the bit width is the option 'bits'"),
    ([3], 'activation.let: must be a dict'),
])
def test_a_wrong_override_is_named(let, message):
    with pytest.raises(ValueError, match=message):
        convert_with(let)


def test_an_override_takes_effect():
    x = torch.randn(500, 2)
    steps = []
    for let in (None, dict(high_percentile_q=90.0, low_percentile_q=10.0)):
        model = convert_with(let)
        calibrate(model, [x])
        steps.append(model[0].input_quant.scale().item())
    assert steps[1] < 0.7 * steps[0]


def test_checking_draws_no_random_number():
    state = torch.get_rng_state()
    refuse_let(Uint8ActPerTensorFloat, dict(collect_stats_steps=3))
    assert torch.equal(torch.get_rng_state(), state)


# These ask for a range that has no default.
NEEDING_LET = {'Int8ActPerTensorFloatMinMaxInit',
               'Uint8ActPerTensorFloatMaxInit',
               'Uint8ActPerTensorFixedPointMaxInit'}
ACTIVATION_NAMES = sorted(
    name for name in BREVITAS.activation.module_dict
    if hasattr(quant, name) and name not in NEEDING_LET)
WEIGHT_NAMES = sorted(name for name in BREVITAS.weight.module_dict
                 if hasattr(quant, name))


def inputs(name):
    """(N, C, L) and, for the statistics of images, (N, C, H, W)."""
    shape = (8, 3, 4, 4) if name.endswith('2d') else (8, 3, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def of_kinds(**kinds):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    convert(model, backend='brevitas', first_last_bits=None,
            **{part: dict(type=kind, bits=4) if kind else None
               for part, kind in kinds.items()})
    return model


@pytest.mark.parametrize('name', WEIGHT_NAMES)
def test_each_weight_quantizer_is_brevitas_own(name):
    model = of_kinds(weight=name, activation=None)
    calibrate(model, [torch.randn(3, 4)])
    plain = QuantLinear(4, 6, weight_quant=getattr(quant, name),
                        weight_bit_width=4)
    with torch.no_grad():
        plain.weight.copy_(model[0].weight)
        plain.bias.copy_(model[0].bias)
    plain.weight_quant.init_tensor_quant()  # of this weight
    x = torch.randn(5, 4)
    plain.train()(x)
    torch.testing.assert_close(model.eval()[0](x), plain.eval()(x))


@pytest.mark.parametrize('name', ACTIVATION_NAMES)
def test_each_activation_quantizer_is_brevitas_own(name):
    model = of_kinds(weight=None, activation=name)
    x = inputs(name)
    calibrate(model, [x, 2 * x])
    plain = QuantLinear(4, 6, weight_quant=None,
                        input_quant=getattr(quant, name), input_bit_width=4)
    with torch.no_grad():
        plain.weight.copy_(model[0].weight)
        plain.bias.copy_(model[0].bias)
        with calibration_mode(plain):
            plain(x)
            plain(2 * x)
    torch.testing.assert_close(model.eval()[0](x), plain.eval()(x))


@pytest.mark.parametrize('name', ACTIVATION_NAMES)
def test_a_state_has_all_statistics(name):
    """Also those that training goes on to collect, and their number."""
    model, twin = (of_kinds(weight='Int8WeightPerTensorFloat',
                             activation=name) for _ in range(2))
    x = inputs(name)
    calibrate(model, [x])
    for factor in (2, 3):
        model.train()(factor * x)
    twin.load_state_dict(model.state_dict())
    for _ in range(2):
        assert torch.equal(model.eval()(x), twin.eval()(x))
        assert torch.equal(model.train()(4 * x), twin.train()(4 * x))


def test_running_statistics_stay_one_tensor_on_another_device_or_type():
    name = 'Int8ActPerTensorFloatBatchQuant1d'
    model = of_kinds(weight=None, activation=name)
    calibrate(model, [inputs(name)])
    model.double().float()
    key = '0.input_quantizer.scaling_impl_runtime_stats_running_stats'
    before = model.state_dict()[key].clone()
    model.train()(5 * inputs(name))
    assert not torch.equal(model.state_dict()[key], before)
