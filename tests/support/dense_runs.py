"""Users' files on configs of mmdet and mmseg, on generated shapes."""

import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from runs import CONFIGS
from shapes_data import make
from torch import nn

from fpq_plugin.layers import predicting

SIZE = 64
TRAIN = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False), batch_sampler=None)
PIPELINE = [dict(type='LoadImageFromFile')]
DETECTION = dict(
    _delete_=True, type='CocoDataset', ann_file='coco.json',
    data_prefix=dict(img='images/'),
    metainfo=dict(classes=('rectangle', 'disc')),
    pipeline=[*PIPELINE, dict(type='LoadAnnotations', with_bbox=True),
              dict(type='PackDetInputs')])
SEGMENTATION = dict(
    _delete_=True, type='BaseSegDataset',
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    metainfo=dict(classes=('background', 'rectangle', 'disc')),
    pipeline=[*PIPELINE, dict(type='LoadAnnotations'),
              dict(type='PackSegInputs')])


def wake(model, size=SIZE):
    """Norms know what they see, and heads tell places apart.

    The last norms of residual blocks stay 0: with random weights in branches
    a rounding would grow from layer to layer, as in no trained model.
    """
    generator = torch.Generator().manual_seed(0)
    ends = predicting(model, [
        name for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))])
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
        elif isinstance(module, nn.Conv2d):
            weight = module.weight.data
            far = 0.05 if name in ends else (2 / weight[0].numel())**0.5
            weight.normal_(0, far, generator=generator)
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model.extract_feat(
                2 * torch.randn(4, 3, size, size, generator=generator))
    model.eval()


def user_config(folder, base, dataset, **more):
    """A user's file on a worked config: small data, one epoch."""
    make(folder / 'data', 8, SIZE)
    cfg = Config.fromfile(str(CONFIGS / base))
    init_default_scope(cfg.default_scope)
    cfg.merge_from_dict(dict(model=more.get('model', {})))
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.init_weights()
    wake(model)
    torch.save(dict(state_dict=model.state_dict()), folder / 'fp.pth')
    own = dict(
        load_from=str(folder / 'fp.pth'),
        model=dict(backbone=dict(init_cfg=None)),
        train_dataloader=dict(
            TRAIN, dataset=dict(dataset, data_root=str(folder / 'data'))),
        train_cfg=dict(_delete_=True, by_epoch=True, max_epochs=1),
        val_cfg=None, val_dataloader=None, val_evaluator=None,
        default_hooks=dict(
            fpq=dict(calibration=dict(num_images=4)),
            checkpoint=dict(_delete_=True, type='CheckpointHook'),
            logger=dict(interval=1)),
        randomness=dict(seed=0))
    for key, value in more.items():
        own[key] = {**own.get(key, {}), **value}
    lines = [f'_base_ = [{str(CONFIGS / base)!r}]']
    lines += [f'{key} = {value!r}' for key, value in own.items()]
    path = folder / 'mine.py'
    path.write_text('\n'.join(lines) + '\n')
    return path
