"""Every way to load a checkpoint answers as trained, or refuses, by key."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.infer import BaseInferencer
from mmengine.model import PretrainedInit
from mmengine.runner import Runner, load_checkpoint
from mmpretrain import ImageClassificationInferencer, get_model
from runs import config as digits_config
from runs import train as train_digits
from small_runs import Three, config, start, train

from fpq_plugin import Recipe, load_model
from fpq_plugin._compat.files import load_file
from fpq_plugin.analysis.trained_models import load_trained_models
from fpq_plugin.export import export_checkpoint
from fpq_plugin.openmmlab.checkpoints import other_recipe, quantizers_of

OTHERS = {
    'DoReFa': (dict(weight=dict(type='DoReFaFakeQuantize', bits=4)),
               r'mix.weight_quantizer: (Log)?LSQFakeQuantize in the '
               'checkpoint, DoReFaFakeQuantize in the config'),
    'PACT': (dict(activation=dict(type='PACTFakeQuantize', bits=4)),
             'mix.input_quantizer: (Log)?LSQFakeQuantize.* PACTFakeQuantize'),
    'per tensor': (dict(weight=dict(bits=4, per_channel=False)),
                   'per channel in the checkpoint, per tensor in the config'),
    'torch.ao': (dict(weight=dict(type='TorchAOFakeQuantize', bits=4)),
                 'LSQFakeQuantize.*TorchAOFakeQuantize'),
    'signed': (dict(activation=dict(bits=4, signed=True)),
               'unsigned in the checkpoint, signed in the config'),
    'symmetric': (dict(activation=dict(bits=4, symmetric=True)),
                  'asymmetric.* symmetric'),
    'Brevitas': (dict(backend='brevitas', weight=dict(
        type='Int8WeightPerChannelFloat', bits=4)),
        'LSQFakeQuantize.*Int8WeightPerChannelFloat'),
}


@pytest.fixture
def preset():
    """The default; tests name another one."""
    return 'recommended'


@pytest.fixture
def trained(tmp_path, preset):
    """The config of a W4A4 run, and its checkpoint."""
    cfg = config(tmp_path, dict(preset=preset), load_from=start(tmp_path))
    train(cfg)
    return cfg, f'{cfg.work_dir}/epoch_1.pth'


def undescribed(path):
    """The checkpoint as release 0.1.0 would have written it."""
    content = torch.load(path, weights_only=True)
    del content['meta']['fpq']['quantizers']
    content['state_dict'] = dict(content['state_dict'])
    torch.save(content, path)


@pytest.mark.parametrize(
    ('preset', 'old'), [('recommended', False), ('paper', False),
                        ('paper', True)],
    ids=['recommended', 'paper', 'of 0.1.0'])
@pytest.mark.parametrize(('other', 'message'), OTHERS.values(), ids=OTHERS)
def test_other_quantizers_are_refused_wherever_they_load(
        trained, tmp_path, other, message, preset, old):
    cfg, path = trained
    if old:
        undescribed(path)
    given = config(tmp_path, dict(other, preset=preset), run='other')
    given.load_from = path
    ways = [lambda: load_model(given, path),
            lambda: export_checkpoint(given, path, tmp_path / 'm.onnx')]
    ways += [getattr(Runner.from_cfg(given), name)
             for name in ('test', 'val', 'train')]
    resumed = copy.deepcopy(given)
    resumed.resume = True
    ways.append(Runner.from_cfg(resumed).train)
    for way in ways:
        with pytest.raises(ValueError, match='otherwise: .*' + message):
            way()
    assert not (tmp_path / 'other/epoch_1.pth').exists()
    load_model(cfg, path)


def test_the_analysis_refuses_them_too(trained, tmp_path):
    _, path = trained
    given = config(tmp_path, OTHERS['DoReFa'][0])
    given.dump(tmp_path / 'other.py')
    with pytest.raises(ValueError, match='does not fit .*DoReFaFakeQuantize'):
        load_trained_models([(str(tmp_path / 'other.py'), path)])


@pytest.mark.parametrize('same', [
    dict(perturbation=None), dict(backend='brevitas'),
    dict(weight=dict(bits=4, observer='mse'))])
def test_what_changes_no_number_is_no_hindrance(trained, tmp_path, same):
    cfg, path = trained
    x = torch.linspace(-1, 1, 32).view(8, 4)
    torch.testing.assert_close(
        load_model(config(tmp_path, same), path)(x), load_model(cfg, path)(x))


LSQ = dict(type='LSQFakeQuantize', bits=4)


@pytest.mark.parametrize('options', [
    dict(weight=dict(bits=4), activation=dict(bits=4)),
    dict(weight=LSQ, activation=LSQ)])
@pytest.mark.parametrize('preset', ['paper'])
def test_an_old_checkpoint_has_the_defaults_of_its_release(
        trained, tmp_path, options):
    """Its config names no preset, which is not today's default then."""
    cfg, path = trained
    undescribed(path)
    content = torch.load(path, weights_only=True)
    content['meta']['cfg'] = ('default_hooks = dict(fpq=dict(type="FPQHook", '
                              + ', '.join(f'{k}={v!r}' for k, v in
                                          options.items()) + '))')
    torch.save(content, path)
    model = load_model(cfg, path)
    assert {each['type'] for each in quantizers_of(
        content, model).values()} == {'LSQFakeQuantize'}
    today = config(tmp_path, run='today')
    with pytest.raises(ValueError, match='LSQFakeQuantize in the checkpoint, '
                       'LogLSQFakeQuantize in the config.*once and is '
                       "preset='paper' now. Use the config"):
        load_model(today, path)


def test_an_old_checkpoint_of_unknown_options_is_read_by_its_keys(trained):
    cfg, path = trained
    undescribed(path)
    content = torch.load(path, weights_only=True)
    content['meta']['cfg'] = "default_hooks = dict(fpq=dict(type='FPQHook'," \
                             ' gone=1))'
    model = load_model(cfg, path)
    assert quantizers_of(content, model) == {}
    content['meta']['cfg'] = 'default_hooks = print(1)'
    assert quantizers_of(content, model) == {}


class Inferencer(BaseInferencer):
    """The least of one."""

    def _init_pipeline(self, cfg):
        return None

    def _init_visualizer(self, cfg):
        return None

    def _init_collate(self, cfg):
        return None

    def visualize(self, inputs, preds, **kwargs):
        pass

    def postprocess(self, preds, visualization, **kwargs):
        pass


def pretrained(path):
    Three(dict(type='Pretrained', checkpoint=path)).init_weights()


def prefixed(path):
    model = Three()
    PretrainedInit(path, prefix='head')(model.head)


@pytest.mark.parametrize('way', [
    lambda cfg, path: load_checkpoint(Three(), path),
    lambda cfg, path: load_checkpoint(Three(), path, strict=True),
    lambda cfg, path: pretrained(path),
    lambda cfg, path: prefixed(path),
    lambda cfg, path: Inferencer(cfg, path, device='cpu', scope='mmengine'),
    lambda cfg, path: Runner.from_cfg(cfg).test(),
    lambda cfg, path: Runner.from_cfg(cfg).train(),
], ids=['load_checkpoint', 'strict', 'Pretrained', 'prefix', 'inferencer',
        'test', 'train'])
@pytest.mark.parametrize('published', [False, True])
def test_latent_weights_never_answer(trained, tmp_path, way, published):
    cfg, path = trained
    if published:  # as CheckpointHook's published_keys leaves it
        content = torch.load(path, weights_only=True)
        torch.save(dict(state_dict=content['state_dict']), path)
    plain = config(tmp_path, run='plain')
    plain.default_hooks = {}
    plain.load_from = path
    with pytest.raises(ValueError, match='trained with FPQ(.|\n)*load_model'):
        way(plain, path)
    with pytest.raises(ValueError, match="the config has no FPQHook.*Use the "
                       "run's own config"):
        load_model(plain, path)


def test_the_ways_out_of_mmpretrain_work(fpq_config, digits, tmp_path):
    cfg = fpq_config(**{'train_dataloader.batch_size': 700})
    train_digits(cfg)
    path = f'{cfg.work_dir}/epoch_1.pth'
    plain = digits_config('fashion_mnist/resnet_fp.py', tmp_path / 'plain')
    for given in (cfg, plain):
        for way in (get_model, ImageClassificationInferencer):
            with pytest.raises(ValueError, match='load_model'):
                way(given, path)
    model = load_model(cfg, path)
    inferencer = ImageClassificationInferencer(
        model, classes=list('0123456789'))
    assert inferencer.model is model


@pytest.mark.parametrize(('more', 'message'), [
    (dict(fpq__skip=['backbone.layer9']), "skip: the pattern 'backbone.lay"),
    (dict(fpq__overrides={'neck': dict(weight=None)}),
     "overrides: the pattern 'neck' matches no layer"),
    (dict(fpq__skip=['*']), 'nothing to quantize'),
    (dict(load_from=None), 'FPQ starts from a full-precision model, and none'),
    (dict(load_from='/none/there.pth'), "load_from: no file '/none/there.pt"),
    (dict(fpq__teacher='/none/there.pth'), "fpq.teacher: no file"),
    (dict(fpq__calibration=dict(num_images=5000)),
     r'calibration.num_images: 5000 images asked for, the training set has '
     '1400'),
    ({'model.backbone.depth': 34}, 'load_from: .* does not fit the model:\n'
     '  missing: backbone.layer1.2.conv1.weight'),
    ({'model.head.num_classes': 7},
     r'of another shape: head.fc.weight \(10, 32\) instead of \(7, 32\)'),
])
def test_runs_are_refused_before_the_first_iteration(fpq_config, more,
                                                     message):
    cfg = fpq_config(**more)
    with pytest.raises(ValueError, match=message):
        train_digits(cfg)
    assert not list(Path(cfg.work_dir).glob('epoch_*'))


def test_testing_a_full_precision_checkpoint(fpq_config, fp):
    with pytest.raises(ValueError, match='is of a full-precision model: it '
                       'has no scales. Test a checkpoint with the config'):
        Runner.from_cfg(fpq_config()).test()


@pytest.mark.parametrize(('content', 'message'), [
    (b'no pickle', 'load_from: .* is not a checkpoint'),
    (None, 'load_from: .* holds a list'),
])
def test_a_load_from_that_is_no_checkpoint(fpq_config, tmp_path, content,
                                           message):
    path = tmp_path / 'weights.pth'
    if content is None:
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        train_digits(fpq_config(load_from=str(path)))


def test_load_from_of_another_model_with_a_good_teacher(fpq_config, fp,
                                                        tmp_path):
    state = load_file(str(fp))['state_dict']
    other = {k.replace('layer3', 'layer4'): v for k, v in state.items()}
    torch.save(other, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='load_from: .* does not fit'):
        train_digits(fpq_config(load_from=str(tmp_path / 'other.pth'),
                         fpq__teacher=str(fp)))


QUANTIZERS = dict(
    weight=dict(type='LSQFakeQuantize', bits=4),
    activation=dict(type='LSQFakeQuantize', bits=4))


@pytest.mark.parametrize(('made_by', 'options', 'told'), [
    (dict(recipe=Recipe(bits='w4a4').describe()), dict(bits='w4a4'), ''),
    (dict(recipe=Recipe(bits='w4a4').describe()),
     dict(bits='w4a4', perturbation=dict(p=0.1)), 'p=0.1'),
    # Types alone are the paper's; the rest is of another preset now.
    ({}, QUANTIZERS, r'\(sum\), and goes on with preset .* \(mean\)'),
    ({}, dict(QUANTIZERS, preset='paper'), ''),
])
def test_another_recipe_than_the_checkpoints_is_told(made_by, options, told):
    text = ("default_hooks = dict(fpq=dict(type='FPQHook', weight=dict("
            "type='LSQFakeQuantize', bits=4), activation=dict("
            "type='LSQFakeQuantize', bits=4)))")
    checkpoint = dict(meta=dict(fpq=made_by, cfg=text))
    found = other_recipe(checkpoint, Recipe(**options))
    if told:
        assert re.search(told, found)
    else:
        assert found == ''
