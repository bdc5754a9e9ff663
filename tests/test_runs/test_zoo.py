"""Small models of many kinds take FPQ steps through Runner and hook."""

import re

import pytest
import torch
from mmengine import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from runs import CONFIGS, log_of, scalars_of
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from fpq_plugin.layers import quantized_layers
from fpq_plugin.param_groups import quantizer_parameters

VIT = dict(embed_dims=16, num_layers=2, num_heads=2,
           feedforward_channels=32)
SWIN = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
# From a name: backbone, channels of its last map, and more of the model.
BACKBONES = {
    'vit': (dict(type='VisionTransformer', arch=VIT, img_size=32,
                 patch_size=8), 16),
    'beit': (dict(type='BEiTViT', arch=VIT, img_size=32, patch_size=8), 16),
    'revvit': (dict(type='RevVisionTransformer', arch=VIT, img_size=32,
                    patch_size=8), 32),
    'swin': (dict(type='SwinTransformer', arch=SWIN, img_size=64,
                  window_size=2), 64),
    'swin_v2': (dict(type='SwinTransformerV2', arch=dict(
        SWIN, extra_norm_every_n_blocks=0), img_size=64, window_size=2), 64),
    'mixer': (dict(type='MlpMixer', img_size=32, patch_size=8, arch=dict(
        embed_dims=16, num_layers=2, tokens_mlp_dims=8,
        channels_mlp_dims=32)), 16),
    'mobilenet_v2': (dict(type='MobileNetV2', widen_factor=0.1,
                          out_indices=(6, )), 32),
    'repvgg': (dict(type='RepVGG', arch=dict(
        num_blocks=[1, 1, 1, 1], width_factor=[0.125] * 4,
        group_layer_map=None, se_cfg=None)), 64),
    'lenet': (dict(type='LeNet5', num_classes=3), None),
}


@DATASETS.register_module(force=True)
class NoiseImages(Dataset):
    """Four pictures of noise with labels."""

    def __init__(self, size, channels):
        self.images = torch.randint(
            256, (4, channels, size, size),
            generator=torch.Generator().manual_seed(0)).byte()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        from mmpretrain.structures import DataSample
        return dict(inputs=self.images[index],
                    data_samples=DataSample().set_gt_label(index % 3))


def run(tmp_path, name, backend, backbone=None, **more):
    """Two FPQ iterations of a model; the runner after them."""
    init_default_scope('mmpretrain')
    kind, channels = BACKBONES[name]
    tokens, lenet = 'vit' in name or name == 'beit', name == 'lenet'
    cfg = Config.fromfile(str(CONFIGS / '_base_/fpq.py'))
    cfg.merge_from_dict(dict(
        default_scope='mmpretrain',
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(mean=[127.0], std=[60.0]),
            backbone=dict(kind, **(backbone or {})),
            neck=None if tokens or lenet else dict(
                type='GlobalAveragePooling', dim=1 if name == 'mixer' else 2),
            head=dict(type='ClsHead') if lenet else dict(
                type='VisionTransformerClsHead' if name == 'vit'
                else 'LinearClsHead', num_classes=3, in_channels=channels)),
        train_dataloader=dict(
            batch_size=2, num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='NoiseImages', channels=1 if lenet else 3,
                         size=32 if lenet else kind.get('img_size', 96))),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1),
                           fpq=dict(cfg.fpq, backend=backend,
                                    calibration=dict(num_images=4))),
        randomness=dict(seed=0),
        work_dir=str(tmp_path / 'run'),
        experiment_name=tmp_path.name,
        load_from=str(tmp_path / 'fp.pth')))
    cfg.merge_from_dict(more)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    with torch.no_grad():  # batch norm statistics of these weights
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = None
        model.train()(dataset.images / 60.0 - 2.0)
    torch.save(model.state_dict(), tmp_path / 'fp.pth')
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('name', BACKBONES)
def test_every_layer_is_quantized_and_distilled(tmp_path, backend, name):
    runner = run(tmp_path, name, backend)
    losses = scalars_of(tmp_path / 'run', 'loss_csd')
    assert len(losses) == 2
    assert all(0 < loss < 200 for loss in losses)
    log = log_of(tmp_path / 'run')
    assert 'leaves float' not in log
    left = re.findall(r'distillation leaves out (\S+): it runs without', log)
    # RevViT's blocks run in an autograd function of their own.
    assert left == [n for n in quantized_layers(runner.model)
                    if name == 'revvit' and '.layers.' in n]
    assert log.count('distillation leaves out') == len(left)
    linear = [n for n, m in runner.model.named_modules()
              if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    assert set(quantized_layers(runner.model)) == set(linear)
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())


def test_layer_decay_holds_for_the_scales(tmp_path, backend):
    runner = run(tmp_path, 'vit', backend, optim_wrapper=dict(
        _delete_=True,
        optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.05),
        constructor='LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5)))
    groups = runner.optim_wrapper.param_groups
    rate = {id(p): g['lr'] for g in groups for p in g['params']}
    decay = {id(p): g['weight_decay'] for g in groups for p in g['params']}
    parameters = dict(runner.model.named_parameters())
    scales = quantizer_parameters(runner.model)
    for name, scale in scales.items():
        weight = parameters[name.rpartition('.')[0].rpartition('.')[0]
                            + '.weight']
        assert rate[id(scale)] == pytest.approx(rate[id(weight)]), name
        assert decay[id(scale)] == 0
    assert len({rate[id(s)] for s in scales.values()}) >= 3


@pytest.mark.parametrize('name', ['swin', 'mobilenet_v2'])
def test_checkpointed_layers_train(tmp_path, backend, name):
    runner = run(tmp_path, name, backend, backbone=dict(with_cp=True))
    assert len(scalars_of(tmp_path / 'run', 'loss_csd')) == 2
    start, state = torch.load(tmp_path / 'fp.pth'), runner.model.state_dict()
    for layer in quantized_layers(runner.model):
        for part in ('weight', 'input_quantizer.log_scale'):
            key = f'{layer}.{part}'
            assert key not in start or not torch.equal(start[key], state[key])


def test_frozen_stages_and_norm_eval(tmp_path, backend):
    runner = run(tmp_path, 'mobilenet_v2', backend,
                 backbone=dict(frozen_stages=2, norm_eval=True))
    start = torch.load(tmp_path / 'fp.pth')
    state = runner.model.state_dict()
    same = {k for k, v in start.items() if torch.equal(v, state[k])}
    assert all(k in same for k in start if 'running_' in k)
    assert all(k in same for k in start
               if k.startswith(('backbone.conv1', 'backbone.layer1',
                                'backbone.layer2')))
    assert 'backbone.layer3.0.conv.0.conv.weight' not in same
    frozen = [p for n, p in quantizer_parameters(runner.model).items()
              if n.startswith('backbone.layer1')]
    assert frozen
    assert not any(p.requires_grad for p in frozen)


def test_sync_batch_norm(tmp_path, backend):
    """One process reverts it; the layers around it are quantized."""
    runner = run(tmp_path, 'mobilenet_v2', backend, backbone=dict(
        norm_cfg=dict(type='SyncBN')))
    assert len(scalars_of(tmp_path / 'run', 'loss_csd')) == 2
    assert not any(isinstance(m, nn.SyncBatchNorm)
                   for m in runner.model.modules())
