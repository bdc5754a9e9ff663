"""Conversion: what is swapped, what stays, what is refused, wrapped or not."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fpq_plugin
from fpq_plugin import LSQFakeQuantize, QuantizedLayer, calibrate, to_float
from fpq_plugin.layers import quantized_layers


@pytest.fixture
def convert(backend):
    """Every test here is one of both backends."""
    return functools.partial(fpq_plugin.convert, backend=backend)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU(),
        nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 16, 5))


def test_bits_reasons_and_shapes_of_the_table(convert):
    table = convert(net(), weight=dict(bits=2), activation=dict(bits=3))
    rows = [(r.name, r.type, r.weight_bits, r.activation_bits, r.shape, r.why)
            for r in table]
    assert rows == [
        ('0', 'Conv2d', 8, 8, (8, 3, 3, 3), 'first layer'),
        ('3', 'Conv2d', 2, 3, (8, 1, 3, 3), 'default'),
        ('5', 'Conv2d', 2, 3, (4, 8, 1, 1), 'default'),
        ('7', 'Linear', 8, 8, (5, 64), 'last layer'),
    ]
    assert table.weight_bytes() == (216 + 320) + (72 + 32) / 4
    assert 'first layer' in str(table)


def test_parameters_keep_names_identity_and_values(convert):
    model = net()
    before = dict(model.named_parameters())
    values = {k: v.clone() for k, v in model.state_dict().items()}
    convert(model, perturbation=dict(p=0.5))
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)
    assert all(torch.equal(model.state_dict()[k], v)
               for k, v in values.items())
    extra = set(model.state_dict()) - set(values)
    assert all('_quantizer.' in key for key in extra)
    assert model[3].weight_quantizer.scale.shape == (8, )
    assert model[3].input_quantizer.scale.shape == (1, )
    assert isinstance(model[3], nn.Conv2d)


def test_a_full_precision_checkpoint_loads_and_the_other_way_round(convert):
    plain, quantized = net(), net()
    convert(quantized)
    missing, unexpected = quantized.load_state_dict(
        plain.state_dict(), strict=False)
    assert not unexpected
    assert all('_quantizer.' in key for key in missing)
    missing, unexpected = plain.load_state_dict(
        quantized.state_dict(), strict=False)
    assert not missing
    assert all('_quantizer.' in key for key in unexpected)


def test_output_is_that_of_hand_quantized_layers(convert):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(4, 3, 3, stride=2))
    plain = copy.deepcopy(model)
    convert(model, weight=dict(bits=3), activation=dict(bits=5),
            first_last_bits=None)
    x = torch.randn(2, 2, 9, 9)
    calibrate(model, [x])
    weights = [layer.weight_quantizer(layer.weight)
               for layer in (model[0], model[2])]
    hidden = torch.relu(nn.functional.conv2d(
        model[0].input_quantizer(x), weights[0], plain[0].bias, padding=1))
    expected = nn.functional.conv2d(
        model[2].input_quantizer(hidden), weights[1], plain[2].bias, stride=2)
    assert torch.equal(model.eval()(x), expected)
    for weight in weights:
        assert all(channel.unique().numel() <= 8 for channel in weight)


def test_to_float_undoes_it(convert):
    model = net()
    x = torch.randn(2, 3, 8, 8)
    expected = model.eval()(x)
    keys = list(model.state_dict())
    convert(model, perturbation=dict(p=1.0))
    calibrate(model, [x])
    assert not torch.equal(model(x), expected)
    assert to_float(model) is model
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == keys
    assert type(model[0]) is nn.Conv2d
    assert not model._forward_pre_hooks


def test_skip_overrides_and_their_order(convert):
    model = nn.ModuleDict(
        dict(stem=nn.Linear(4, 4),
             body=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4),
                                nn.Linear(4, 4)),
             head=nn.Sequential(nn.Linear(4, 2))))
    table = convert(
        model,
        skip=['stem'],
        overrides={
            'body': dict(weight=dict(bits=6)),
            'body.*': dict(activation=dict(bits=3)),
            'body.2': dict(weight=None, activation=None),
            'head': dict(activation=None),
        })
    rows = {r.name: (r.weight_bits, r.activation_bits, r.why) for r in table}
    assert rows == {
        'stem': (32, 32, "skip 'stem'"),
        'body.0': (6, 3, "override 'body.*'"),
        'body.1': (6, 3, "override 'body.*'"),
        'body.2': (32, 32, "override 'body.2': off"),
        'head.0': (8, 32, "override 'head'"),
    }
    assert list(quantized_layers(model)) == ['body.0', 'body.1', 'head.0']


def test_bits_32_and_none_mean_off(convert):
    table = convert(net(), weight=dict(bits=32), first_last_bits=32)
    assert [(r.weight_bits, r.activation_bits) for r in table] == [
        (32, 32), (32, 4), (32, 4), (32, 32)]


def test_a_layer_registered_twice_stays_one_layer(convert):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 4))
    aside = [shared]
    convert(model)
    assert model[0] is model[2] is aside[0]
    assert isinstance(aside[0], QuantizedLayer)
    assert len(quantized_layers(model)) == 2


def test_frozen_layers_get_frozen_scales(convert):
    model = net()
    model[0].requires_grad_(False)
    convert(model)
    assert not model[0].weight_quantizer.scale.requires_grad
    assert model[3].weight_quantizer.scale.requires_grad


def test_unregistered_layers_are_in_the_table(convert):
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4))
    table = convert(model)
    assert [(r.name, r.weight_bits, r.why) for r in table] == [
        ('0', 32, 'type torch.nn.modules.sparse.Embedding not registered'),
        ('1', 8, 'first layer'),
    ]


def through_a_file(model, tmp_path):
    torch.save(model, tmp_path / 'model.pth')
    return torch.load(tmp_path / 'model.pth', weights_only=False)


# Brevitas's proxies hold classes made at run time, which no pickle takes.
@pytest.mark.parametrize(('backend', 'duplicate'), [
    ('torch_ao', lambda model, _: copy.deepcopy(model)),
    ('brevitas', lambda model, _: copy.deepcopy(model)),
    ('torch_ao', through_a_file),
], ids=['torch_ao', 'brevitas', 'pickle'])
def test_copies_and_pickles(convert, duplicate, tmp_path):
    model = net()
    convert(model, perturbation=dict(p=0.5))
    x = torch.randn(2, 3, 8, 8)
    calibrate(model, [x])
    other = duplicate(model.eval(), tmp_path)
    assert torch.equal(other(x), model(x))
    clocks = {id(layer.perturbation.clock)
              for layer in quantized_layers(other).values()}
    assert len(clocks) == 1
    assert clocks != {id(model[0].perturbation.clock)}


@pytest.mark.parametrize(('options', 'message'), [
    (dict(weight=dict(bits=1)), '^weight.bits: must be an integer of 2 to 8'),
    (dict(activation=dict(bits=16)), '^activation.bits: must be'),
    (dict(first_last_bits=9), '^first_last_bits: bits must be an integer'),
    (dict(weight=dict(bitz=4)), "unknown option 'bitz'. Did you mean 'bits'"),
    (dict(weight=dict(type='LSQ')), "weight.type: 'LSQ' is not registered"),
    (dict(perturbation=dict(p=2)), '^perturbation.p: must be a probability'),
    (dict(perturbation=dict(prob=1)), "perturbation: unknown option 'prob'"),
    (dict(skip=['backbone']), "skip: the pattern 'backbone' matches no layer"),
    (dict(overrides={'9': dict(weight=None)}), "overrides: the pattern '9'"),
    (dict(overrides={'0': dict(wieght=None)}), "Did you mean 'weight'"),
    (dict(overrides={'0': dict(weight=dict(bits=1))}),
     r"overrides\['0'\].weight.bits: must"),
    (dict(skip=['*']), 'nothing to quantize: skip and overrides'),
])
def test_bad_options_are_named_and_nothing_changes(convert, options, message):
    model = net()
    with pytest.raises(ValueError, match=message):
        convert(model, **options)
    assert not quantized_layers(model)
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize(('options', 'message'), [
    (dict(weight=4), 'weight: must be a dict or None'),
    (dict(skip='head'), 'skip: must be a list'),
    (dict(overrides=['0']), 'overrides: must be a dict'),
])
def test_wrong_types(convert, options, message):
    with pytest.raises(TypeError, match=message):
        convert(net(), **options)


def test_nothing_to_quantize_and_twice(convert):
    with pytest.raises(ValueError, match='no layer of the types Conv1d, Conv'):
        convert(nn.Sequential(nn.Bilinear(1, 1, 1), nn.ReLU()))
    model = net()
    convert(model)
    with pytest.raises(ValueError, match='quantized already'):
        convert(model)


def test_another_registered_quantizer_is_built_by_its_name(convert):
    from mmengine.registry import MODELS

    @MODELS.register_module(force=True)
    class HalfStep(LSQFakeQuantize):
        """LSQ whose step is half the calibrated one."""

        def initialize(self):
            super().initialize()
            with torch.no_grad():
                self.scale.mul_(0.5)

    model = net()
    convert(model, activation=dict(type='HalfStep', bits=4))
    assert isinstance(model[3].input_quantizer, HalfStep)
    assert not isinstance(model[3].weight_quantizer, HalfStep)


def test_bits_32_is_off_for_the_first_and_last_layer_too(convert):
    table = convert(net(), weight=dict(bits=32))
    assert [(r.weight_bits, r.activation_bits) for r in table] == [
        (32, 8), (32, 4), (32, 4), (32, 8)]


def test_first_and_last_are_those_that_are_quantized(convert):
    table = convert(net(), overrides={
        '0': dict(weight=None, activation=None), '7': dict(weight=None,
                                                           activation=None)})
    assert [(r.weight_bits, r.why) for r in table] == [
        (32, "override '0': off"), (8, 'first of those that are left'),
        (8, 'last of those that are left'), (32, "override '7': off")]


def test_an_activation_has_one_step(convert):
    with pytest.raises(ValueError, match='activation of 0: per_channel is fo'):
        convert(net(), activation=dict(bits=4, per_channel=True))


def test_a_weight_that_is_no_tensor_is_passed_over(convert):
    model = net()
    model[2].weight = 0.5
    assert len(convert(model)) == 4


def test_mmcvs_own_linear_and_conv(convert):
    from mmcv.cnn.bricks import wrappers
    model = nn.Sequential(wrappers.Conv2d(1, 4, 3), nn.Flatten(),
                          wrappers.Linear(4, 4), wrappers.Linear(4, 2))
    plain = copy.deepcopy(model)
    convert(model, weight=dict(bits=32), activation=dict(bits=8))
    x = torch.randn(64, 1, 3, 3)
    calibrate(model, [x])
    assert len(quantized_layers(model)) == 3
    torch.testing.assert_close(
        model.eval()(x), plain(x), rtol=0.1, atol=0.05)
    to_float(model)
    assert torch.equal(model(x), plain(x))
    assert type(model[2]) is wrappers.Linear


def test_lazy_layers_are_named_and_nothing_changes(convert):
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2),
                          nn.LazyBatchNorm1d())
    for _ in range(2):
        with pytest.raises(ValueError, match=r'^lazy .*: 1 \(LazyLinear\), 2 '
                           r'\(LazyBatchNorm1d\). Run the model on a batch'):
            convert(model)
    assert type(model[0]) is nn.Linear
    model(torch.randn(5, 4))
    assert len(convert(model).quantized()) == 2


@pytest.mark.parametrize(('pattern', 'hint'), [
    ('stage_1', r"Did you mean '\*stage_1\*'\? Nearest"),
    ('head.*fc', 'not regular expressions. Nearest'),
    ('^net.stage_1', 'not regular expressions. Nearest'),
    ('net.stage_2', r'be quantized. Nearest names: net.stage_1'),
])
@pytest.mark.parametrize('option', ['skip', 'overrides'])
def test_a_pattern_that_matches_nothing_gets_a_hint(convert, pattern, hint,
                                                    option):
    model = nn.ModuleDict(dict(
        net=nn.ModuleDict(dict(stage_1=nn.Linear(4, 4))),
        head=nn.Linear(4, 4)))
    given = [pattern] if option == 'skip' else {pattern: dict(weight=None)}
    with pytest.raises(ValueError, match=hint):
        convert(model, **{option: given})


def test_a_part_that_is_quantized_already_is_named(convert):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4))
    convert(model[0])
    with pytest.raises(ValueError, match="its layer '0.0' is a .*to_float"):
        convert(model)
    to_float(model[0])
    assert len(convert(model)) == 2


def test_an_inner_layer_is_last_when_the_head_is_left_out(convert):
    table = convert(net(), skip=['7'])
    assert [r.why for r in table] == [
        'first layer', 'default', 'last of those that are left', "skip '7'"]


@pytest.fixture
def gloo(tmp_path):
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def small():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def compiled_in_place(model):
    model.compile()
    return model


def part(model):
    model[0] = DistributedDataParallel(model[0])
    return model


WRAPPERS = dict(
    DistributedDataParallel=DistributedDataParallel,
    DataParallel=nn.DataParallel,
    OptimizedModule=torch.compile)
WRAPPERS['0 is wrapped by DistributedDataParallel'] = part
if hasattr(nn.Module, 'compile'):
    WRAPPERS['torch.compile'] = compiled_in_place


@pytest.mark.parametrize('name', WRAPPERS)
def test_convert_refuses_by_the_wrappers_name(gloo, name):
    wrapped = WRAPPERS[name](small())
    before = {k: v.clone() for k, v in wrapped.state_dict().items()}
    with pytest.raises(ValueError, match=f'convert: .*{name}'):
        fpq_plugin.convert(wrapped)
    assert not quantized_layers(wrapped)
    assert wrapped.state_dict().keys() == before.keys()


@pytest.mark.parametrize('name', WRAPPERS)
def test_calibrate_does_too(gloo, name):
    model = small()
    fpq_plugin.convert(model)
    wrapped = WRAPPERS[name](model)
    with pytest.raises(ValueError, match=f'calibrate: .*{name}'):
        calibrate(wrapped, [torch.randn(8, 4)])
    assert not any(layer.weight_quantizer.is_initialized()
                   for layer in quantized_layers(wrapped).values())


@pytest.mark.parametrize('kind', ['LSQFakeQuantize', LSQFakeQuantize])
def test_an_override_of_another_type_keeps_the_bits(convert, kind):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    table = convert(model, weight=dict(bits=3), overrides={
        '1': dict(weight=dict(type=kind), activation=dict(type=kind, bits=5))})
    assert type(model[1].weight_quantizer) is LSQFakeQuantize
    assert [(row.weight_bits, row.activation_bits) for row in table][1] == (
        3, 5)
