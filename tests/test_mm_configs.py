"""Every config of ours resolves, and says what its name says."""

import re
from pathlib import Path

import pytest
from mmengine import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from runs import CONFIGS

ALL = sorted(p.relative_to(CONFIGS) for p in CONFIGS.rglob('*.py')
             if p.name != '__init__.py'
             # Their bases are of libraries that need mmcv's ops.
             and p.parts[-2] not in ('mmdet', 'mmseg'))


@pytest.mark.parametrize('path', ALL, ids=str)
def test_bits_and_parts_are_those_of_the_name(path):
    cfg = Config.fromfile(str(CONFIGS / path))
    named = re.search(r'_w(\d)a(\d)', path.stem)
    if named is None:
        assert 'fpq' not in cfg
        return
    options = cfg.fpq if path.parts[0] == '_base_' else cfg.default_hooks.fpq
    assert options.weight.bits == int(named[1])
    assert options.activation.bits == int(named[2])
    if 'lsq' in path.stem:
        assert options.perturbation is options.distillation is None
    else:
        assert options.perturbation.p == 0.1
        assert options.distillation.loss_weight == 1.0
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
    bits = [row.weight_bits for row in table]
    assert bits[0] == bits[-1] == 8
    assert set(bits[1:-1]) == {4}


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


def test_the_zoo_config_points_at_openmmlabs_checkpoint():
    cfg = Config.fromfile(str(CONFIGS / 'fpq_resnet50_w4a4.py'))
    assert Path(cfg.load_from).name == \
        'resnet50_8xb32_in1k_20210831-ea4938fc.pth'
