"""The options, checked once: presets, bits, full names in messages."""

import dataclasses

import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from fpq_plugin import (
    CSDLoss,
    DistillationLoss,
    DoReFaFakeQuantize,
    FPQHook,
    LSQFakeQuantize,
    Recipe,
    StochasticFeaturePerturbation,
    convert,
)
from fpq_plugin.targets import known_targets


def model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3),
                         nn.Flatten(), nn.Linear(64, 2))


def test_the_recommended_preset_is_the_default():
    recipe = Recipe()
    assert recipe == Recipe(preset='recommended')
    assert recipe.weight == dict(type='LogLSQFakeQuantize', bits=4)
    assert recipe.activation == dict(recipe.weight, observer='mse')
    assert recipe.objective == 'mean'
    assert (recipe.first_last_bits, recipe.calibration_images()) == (8, 100)


def test_the_papers_preset_is_the_papers():
    recipe = Recipe(preset='paper')
    assert recipe.weight == dict(type='LSQFakeQuantize', bits=4)
    assert recipe.activation == recipe.weight
    assert recipe.perturbation == dict(
        type='StochasticFeaturePerturbation', p=0.1)
    assert recipe.distillation == (dict(type='CSDLoss', loss_weight=1.0), )
    assert recipe.objective == 'sum'


@pytest.mark.parametrize(('preset', 'name'), [
    ('paper', 'fpq_w4a4'), ('recommended', 'methods/recommended')])
def test_a_preset_is_that_of_its_fragment(preset, name):
    import mm_configs
    fragment = Config.fromfile(mm_configs.path(f'_base_/{name}.py')).fpq
    options = {k: v for k, v in fragment.items() if k != 'type'}
    ours, theirs = Recipe(preset=preset), Recipe.of(options)
    for part in ('weight', 'activation', 'perturbation', 'distillation',
                 'objective'):
        assert getattr(ours, part) == getattr(theirs, part)


@pytest.mark.parametrize(('bits', 'wanted'), [
    ('w2a4', (2, 4)), ('W8A8', (8, 8)), ('w3a32', (3, None)),
    ('w32a5', (None, 5)),
])
def test_bits_of_both_at_once(bits, wanted):
    recipe = Recipe(bits=bits)
    found = tuple(cfg and cfg['bits']
                  for cfg in (recipe.weight, recipe.activation))
    assert found == wanted
    row = recipe.convert(model())[1]
    assert (row.weight_bits, row.activation_bits) == tuple(
        each or 32 for each in wanted)


def test_bits_join_options_that_do_not_say_any():
    recipe = Recipe(bits='w2a2', weight=dict(per_channel=False),
                    activation=dict(bits=2, observer='mse'))
    assert recipe.weight == dict(type='LogLSQFakeQuantize',
                                 per_channel=False, bits=2)
    assert recipe.activation['observer'] == 'mse'


@pytest.mark.parametrize(('given', 'wanted'), [
    (dict(bits=2), 'mse'), (dict(signed=True), 'mse'),
    (dict(observer='min_max'), 'min_max'),
    (dict(type='LogLSQFakeQuantize', bits=8), 'mse'),
    (dict(type='LSQFakeQuantize', bits=8), None)])
def test_an_activation_keeps_the_presets_observer(given, wanted):
    """But for another type; and attention's operands are such."""
    for part in ('activation', 'attention'):
        found = getattr(Recipe(**{part: given}), part)
        assert found.get('observer') == wanted
        assert found.get('bits') == given.get('bits')


def test_perturbation_and_distillation_change_the_preset_where_they_speak():
    recipe = Recipe(perturbation=dict(where='before'),
                    distillation=dict(loss_weight=5.0))
    assert recipe.perturbation == dict(
        type='StochasticFeaturePerturbation', p=0.5, where='before')
    assert recipe.distillation == (dict(type='CSDLoss', loss_weight=5.0), )
    other = Recipe(distillation=dict(type='LogitKD'))
    assert other.distillation == (dict(type='LogitKD'), )
    off = Recipe(preset='recommended', perturbation=None, distillation=None)
    assert off.perturbation is None
    assert off.losses() == []


def test_a_class_counts_as_its_name():
    recipe = Recipe(
        weight=dict(type=LSQFakeQuantize, bits=4),
        perturbation=dict(type=StochasticFeaturePerturbation),
        distillation=dict(type=CSDLoss, loss_weight=2.0),
        overrides={'2': dict(weight=dict(type=LSQFakeQuantize, bits=3))})
    assert recipe.weight == dict(type='LSQFakeQuantize', bits=4)
    assert recipe.perturbation['p'] == 0.5
    assert recipe.distillation[0]['type'] == 'CSDLoss'
    assert recipe.convert(model())[1].weight_bits == 3


def test_a_class_in_an_override_keeps_the_other_options():
    recipe = Recipe(
        weight=dict(type='LSQFakeQuantize', bits=4, per_channel=False),
        overrides={'2': dict(weight=dict(type=LSQFakeQuantize, bits=3))})
    net = model()
    recipe.convert(net)
    assert not net[2].weight_quantizer.is_per_channel


@pytest.mark.parametrize(('options', 'message'), [
    (dict(weight=dict(bits=1)), r'^fpq\.weight\.bits: must be an integer'),
    (dict(objective='max'), r"^fpq\.objective: must be 'mean' or 'sum'"),
    (dict(bits='4'), r"^fpq\.bits: must be as 'w4a4', got '4'"),
    (dict(bits=4), r"^fpq\.bits: must be as 'w4a4', got 4"),
    (dict(bits='w9a4'), r'^fpq\.weight\.bits: must be an integer'),
    (dict(bits='w2a2', weight=dict(bits=4)),
     r"^fpq\.bits: 'w2a2' contradicts fpq\.weight, which has 4 bits"),
    (dict(bits='w2a2', activation=None),
     r"^fpq\.bits: 'w2a2' contradicts fpq\.activation, which has 32 bits"),
    (dict(preset='papers'),
     r"^fpq\.preset: must be 'recommended' or 'paper', got 'papers'"),
    (dict(perturbation=dict(p=2)), r'^fpq\.perturbation\.p: must be a prob'),
    (dict(distillation=[dict(eps=0)]), r'^fpq\.distillation\.eps: must be'),
    (dict(attention=dict(bits=0)), r'^fpq\.attention\.bits: must be an int'),
    (dict(first_last_bits=1), r'^fpq\.first_last_bits: bits must be an int'),
    (dict(overrides={'2': dict(activation=dict(bits=1))}),
     r"^fpq\.overrides\['2'\]\.activation\.bits: must be an integer"),
    (dict(overrides={'2': dict(activation=dict(type='DoReFaFakeQuantize'))}),
     r"^fpq\.overrides\['2'\]\.activation\.type: DoReFaFakeQuantize is for"),
    (dict(calibration=dict(num_images=True)),
     r'^fpq\.calibration\.num_images: must be a positive integer'),
    (dict(batch_norms=dict(num_images=0)),
     r'^fpq\.batch_norms\.num_images: must be a positive integer'),
    (dict(batch_norms=dict(images=9)), r'^fpq\.batch_norms: unknown'),
])
def test_messages_have_the_full_name(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)
    with pytest.raises(ValueError, match=message):
        FPQHook(**options)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(teacher=3), r'^fpq\.teacher: must be the path or URL'),
    (dict(calibration=100), r'^fpq\.calibration: must be a dict'),
    (dict(batch_norms=1000), r'^fpq\.batch_norms: must be a dict, got 1000'),
    (dict(skip='head'), r'^fpq\.skip: must be a list of patterns'),
    (dict(distill_skip='head'), r'^fpq\.distill_skip: must be a list'),
    (dict(overrides=['head']), r'^fpq\.overrides: must be a dict'),
    (dict(overrides=dict(head=8)), r"^fpq\.overrides\['head'\]: must be a"),
    (dict(weight='LSQ'), r'^fpq\.weight: must be a dict or None'),
    (dict(weight=4, bits='w4a4'), r'^fpq\.weight: must be a dict or None'),
])
def test_wrong_types_have_the_full_name(options, message):
    with pytest.raises(TypeError, match=message):
        Recipe(**options)


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ValueError, match=r"^fpq: unknown option 'bit'. Did "
                       "you mean 'bits'"):
        Recipe.of(dict(bit='w4a4'))


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().preset = 'recommended'


def test_its_line_tells_all_parts():
    line = Recipe(preset='recommended', bits='w2a32').describe()
    assert line == (
        "preset 'recommended': weight LogLSQFakeQuantize(bits=2), activation "
        'off, perturbation StochasticFeaturePerturbation(p=0.5), '
        "distillation CSDLoss(loss_weight=1.0, fades='out', fades_by=100) + "
        "LogitKD(loss_weight=3.0, temperature=4.0, fades='in', fades_by=100) "
        '(mean), batch norms of 1000 images')


def test_a_model_without_logits_gets_csd_alone():
    csd, = Recipe().losses(has_logits=False)
    assert (csd.label, csd.loss_weight, csd.part) == ('csd', 1.0, None)
    assert [each.label for each in Recipe().losses()] == ['csd', 'kd']
    for distillation in (dict(type='LogitKD'), [dict(type='LogitKD')]):
        own, = Recipe(distillation=distillation).losses(has_logits=False)
        assert own.label == 'kd'
    assert Recipe(distillation=None).losses(has_logits=False) == []
    paper, = Recipe(preset='paper').losses(has_logits=False)
    assert paper.label == 'csd'
    assert Recipe(preset='paper', distillation=None).describe().endswith(
        'distillation off')


def test_is_float():
    off = dict(weight=None, activation=dict(bits=32))
    assert Recipe(**off).is_float()
    assert Recipe(bits='w32a32').is_float()
    assert not Recipe(**off, overrides={'0': dict(weight=dict(bits=4))}
                      ).is_float()


def test_a_loss_of_ones_own(monkeypatch):

    class Distance(DistillationLoss):
        label = 'distance'

        def __init__(self, loss_weight=1.0):
            super().__init__()
            self.loss_weight = loss_weight

        def forward(self, student, teacher, channel_axis):
            return self.loss_weight * (student - teacher).abs().mean()

    monkeypatch.setitem(MODELS._module_dict, 'Distance', Distance)
    loss, = Recipe(distillation=dict(type='Distance',
                                     loss_weight=2.0)).losses()
    assert loss(torch.zeros(3, 2), torch.ones(3, 2), -1) == 2


@pytest.mark.parametrize(('option', 'message'), [
    (dict(weight=dict(bits=1)), 'fpq.weight.bits: must be an integer'),
    (dict(activation=dict(bits=9)), 'fpq.activation.bits: must be an integer'),
    (dict(perturbation=dict(p=1.2)), 'fpq.perturbation.p: must be a prob'),
    (dict(perturbation=dict(q=1)), "perturbation: unknown option 'q'"),
    (dict(distillation=dict(weight=1)), "distillation: unknown option 'weig"),
    (dict(distillation=dict(type='KD')), "distillation.type: 'KD' is not"),
    (dict(distillation=dict(type='LSQFakeQuantize', bits=4)),
     "distillation.type: 'LSQFakeQuantize' is no class of kind Distillat"),
    (dict(weight=dict(type='CSDLoss', bits=4)),
     "weight.type: 'CSDLoss' is no class of kind Quantizer"),
    (dict(activation=dict(type='StochasticFeaturePerturbation')),
     "activation.type: 'StochasticFeaturePerturbation' is no class of kind"),
    (dict(activation=dict(type=5)), 'activation.type: 5 is no class of kind'),
    (dict(perturbation=dict(type='LSQFakeQuantize', bits=4)),
     "'LSQFakeQuantize' is no class of kind StochasticFea"),
    (dict(overrides=dict(x=dict(weight=dict(type='CSDLoss')))),
     r"overrides\['x'\].weight.type: 'CSDLoss' is no class of kind Quantizer"),
    (dict(weigth=None), "fpq: unknown option 'weigth'. Did you mean 'weight'"),
    (dict(backend='tensorrt'), "backend: must be 'brevitas' or 'torch_"),
    (dict(calibration=dict(num_images=0)), 'must be a positive integer'),
    (dict(calibration=dict(images=5)), "fpq.calibration: unknown option"),
    (dict(scale_lr_mult=-1), 'fpq.scale_lr_mult: must be a number >= 0'),
])
def test_options_are_refused_when_the_runner_is_built(option, message,
                                                      backend):
    with pytest.raises(ValueError, match=message):
        FPQHook(**{'backend': backend, **option})


def test_a_wrong_value_stops_the_runner_and_leaves_the_work_dir(
        fpq_config, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'epoch_1.pth').write_bytes(b'kept')
    cfg = fpq_config(fpq__perturbation=dict(p=1.2))
    with pytest.raises(ValueError, match='fpq.perturbation.p: must be'):
        Runner.from_cfg(cfg)
    assert (folder / 'epoch_1.pth').read_bytes() == b'kept'
    assert not list(folder.glob('*.py'))


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
@pytest.mark.parametrize('target', [None, *known_targets()])
def test_weights_for_an_engine_have_no_lowest_integer(backend, target):
    """-128 has no opposite, which a batch norm of negative gain asks for."""
    options = dict(backend=backend, target=target, activation=dict(
        bits=8, symmetric=True), first_last_bits=None)

    def ranges(**weight):
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1))
        Recipe(weight=weight, overrides={'1': dict(weight=dict(bits=4))},
               **options).convert(model)
        assert model[0].input_quantizer.quant_min == -128
        return [(layer.weight_quantizer.quant_min,
                 layer.weight_quantizer.quant_max) for layer in model]

    low = -128 if target is None else -127
    assert ranges(bits=8) == [(low, 127), (-8, 7)]
    assert ranges(bits=8, narrow_range=False) == [(-128, 127), (-8, 7)]
    assert ranges(bits=8, narrow_range=True) == [(-127, 127), (-7, 7)]
    if target in (None, 'onnxruntime', 'openvino'):
        assert ranges(bits=8, symmetric=False) == [(0, 255), (0, 15)]


def test_convert_knows_the_engines_rules():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match='^activation: TensorRT takes 8-bit'):
        convert(model, activation=dict(bits=8), target='tensorrt')
    convert(model, target='onnxruntime')
    assert [layer.weight_quantizer.quant_min for layer in model] == [-127] * 2


@MODELS.register_module()
class FourBits(LSQFakeQuantize):
    """A user's, which has another default."""

    def __init__(self, bits=4, **options):
        super().__init__(bits, **options)


@MODELS.register_module()
class Unsigned(LSQFakeQuantize):
    """A user's, which knows of no sign."""

    def __init__(self, bits=8, **options):
        super().__init__(bits, **{**options, 'signed': False})


@MODELS.register_module()
class Narrow(LSQFakeQuantize):
    """A user's, which is narrow at any bits."""

    def __init__(self, bits=8, narrow_range=True, **options):
        super().__init__(bits, narrow_range=narrow_range, **options)


@MODELS.register_module()
class Ternary(LSQFakeQuantize):
    """A user's, which takes few options."""

    def __init__(self, per_channel=True, num_channels=None, ch_axis=0):
        super().__init__(8, symmetric=True, per_channel=per_channel,
                         num_channels=num_channels, ch_axis=ch_axis)


@MODELS.register_module()
class Wide(LSQFakeQuantize):
    """A user's, which needs all integers."""

    def __init__(self, bits=8, **options):
        super().__init__(bits, narrow_range=False, **options)


@pytest.mark.parametrize('target', [None, 'onnxruntime'])
@pytest.mark.parametrize(('kind', 'low'), [
    (FourBits, -8), (Unsigned, 0), (Narrow, -127), (Ternary, -128),
    (Wide, -128), (DoReFaFakeQuantize, -128)])
def test_a_users_quantizer_has_the_range_that_it_says(kind, low, target):
    model = nn.Sequential(nn.Linear(2, 2))
    convert(model, weight=dict(type=kind.__name__), first_last_bits=None,
            target=target)
    assert model[0].weight_quantizer.quant_min == low
