"""Every config of ours resolves, and says what its name says."""

import re
from pathlib import Path

import pytest
from mmengine import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from runs import CONFIGS

from fpq_plugin import Recipe
from fpq_plugin.layers import quantized_layers

METHODS = sorted(p.stem for p in CONFIGS.glob('_base_/methods/*.py'))
ALL = sorted(p.relative_to(CONFIGS) for p in CONFIGS.rglob('*.py')
             if not p.name.startswith('__')
             # Their bases are of libraries that need mmcv's ops.
             and p.parent.name not in ('methods', 'mmdet', 'mmseg'))


@pytest.mark.parametrize('path', ALL, ids=str)
def test_bits_and_parts_are_those_of_the_name(path):
    cfg = Config.fromfile(str(CONFIGS / path))
    named = re.search(r'_w(\d)a(\d)', path.stem)
    if named is None and path.stem != 'fpq':
        assert 'fpq' not in cfg
        return
    options = cfg.fpq if path.parts[0] == '_base_' else cfg.default_hooks.fpq
    bits = map(int, named.groups()) if named else (4, 4)
    recipe, default = HOOKS.build(options).recipe, Recipe()
    if (path.parts[0] == 'cifar' or 'lsq' in path.stem
            or path.match('_base_/fpq_w*')):
        default = Recipe(preset='paper')
    assert recipe.preset == default.preset
    for part, number in zip(('weight', 'activation'), bits):
        assert getattr(recipe, part) == {
            **getattr(default, part), 'bits': number}
    if 'lsq' in path.stem:
        assert recipe.perturbation is None
        assert not recipe.distillation
    else:
        assert recipe.perturbation == default.perturbation
        assert recipe.distillation == default.distillation
    assert recipe.objective == default.objective
    assert cfg.custom_imports.imports == ['fpq_plugin']
    if path.parts[0] != '_base_':
        assert cfg.load_from.endswith('.pth')


@pytest.mark.parametrize(
    'path', [p for p in ALL if '_w4a4' in p.stem and p.parts[0] != '_base_'],
    ids=str)
def test_models_convert(path):
    cfg = Config.fromfile(str(CONFIGS / path))
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    table = HOOKS.build(cfg.default_hooks.fpq).convert(model)
    bits = [row.weight_bits for row in table
            if not row.why.startswith('a parameter;')]
    assert bits[0] == bits[-1] == 8
    assert set(bits[1:-1]) == {4}


def with_method(name, tmp_path):
    """A user's config that puts a method's fragment into a model's."""
    path = tmp_path / 'user.py'
    bases = [str(CONFIGS / '_base_' / base)
             for base in ('fashion_mnist_1k.py', 'sgd_40e.py',
                          'resnet_thin_fashion_mnist.py',
                          f'methods/{name}.py')]
    path.write_text(f'_base_ = {bases}\n'
                    'default_hooks = dict(fpq=_base_.fpq)\n')
    return Config.fromfile(str(path))


@pytest.mark.parametrize('name', METHODS)
def test_methods_are_what_they_are_called(name, tmp_path):
    cfg = with_method(name, tmp_path)
    init_default_scope('mmpretrain')
    hook = HOOKS.build(cfg.default_hooks.fpq)
    table = hook.convert(model := MODELS.build(cfg.model))
    assert table[1].weight_bits == table[1].activation_bits == 4
    layer = quantized_layers(model)['backbone.layer1.0.conv1']
    quantizers = (type(layer.weight_quantizer).__name__,
                  type(layer.input_quantizer).__name__)
    assert quantizers == {
        'lsq_plus': ('LSQPlusFakeQuantize', ) * 2,
        'pact': ('DoReFaFakeQuantize', 'PACTFakeQuantize'),
        'recommended': ('LogLSQFakeQuantize', ) * 2,
        'torch_ao': ('TorchAOFakeQuantize', ) * 2,
    }.get(name, ('LSQFakeQuantize', ) * 2)
    assert layer.weight_quantizer.is_per_channel == (name != 'per_tensor')
    noise = type(layer.perturbation).__name__
    assert noise == {
        'fpq': 'StochasticFeaturePerturbation',
        'fpq_kd': 'StochasticFeaturePerturbation',
        'per_tensor': 'StochasticFeaturePerturbation',
        'recommended': 'StochasticFeaturePerturbation',
        'sfp': 'StochasticFeaturePerturbation',
        'sfp_kd': 'StochasticFeaturePerturbation',
        'weight_noise': 'StochasticWeightPerturbation',
    }.get(name, 'NoneType')
    assert [criterion.label for criterion in hook.recipe.losses()] == {
        'csd': ['csd'],
        'fpq': ['csd'],
        'fpq_kd': ['csd', 'kd'],
        'kd': ['kd'],
        'per_tensor': ['csd'],
        'recommended': ['csd', 'kd'],
        'sfp_kd': ['kd'],
        'weight_noise': ['csd'],
    }.get(name, [])
    assert ('sam' in cfg) == ('sam' in name)


def test_the_papers_protocol():
    cfg = Config.fromfile(str(CONFIGS / 'cifar/resnet18_fpq_w2a4_cifar100.py'))
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
    assert cfg.train_dataloader.batch_size == 256
    assert cfg.train_cfg.max_epochs == 200
    assert cfg.param_scheduler.type == 'CosineAnnealingLR'
    assert cfg.param_scheduler.get('eta_min', 0) == 0
    assert cfg.model.head.num_classes == 100


def test_mobilenet_for_small_images_keeps_its_resolution():
    import torch
    cfg = Config.fromfile(
        str(CONFIGS / 'cifar/mobilenet_v2_fp_cifar10.py'))
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.randn(1, 3, 32, 32), 'backbone')
    assert maps[0].shape == (1, 1280, 4, 4)
    cfg = Config.fromfile(
        str(CONFIGS / 'cifar/mobilenet_v1_fp_cifar10.py'))
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.randn(1, 3, 32, 32), 'backbone')
    assert maps[0].shape == (1, 1024, 2, 2)
    # Howard et al.: 4.2 M parameters with 1,000 classes, 1.0 M of them there.
    backbone = sum(p.numel() for p in model.backbone.parameters())
    assert 3.1e6 < backbone < 3.3e6


@pytest.mark.parametrize(('name', 'file'), [
    ('resnet50', 'resnet50_8xb32_in1k_20210831-ea4938fc.pth'),
    ('mobilenet_v2', 'mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth'),
    ('deit_small', 'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'),
])
def test_the_zoo_configs_point_at_openmmlabs_checkpoints(name, file):
    cfg = Config.fromfile(str(CONFIGS / f'fpq_{name}_w4a4.py'))
    assert Path(cfg.load_from).name == file
