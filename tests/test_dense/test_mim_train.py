"""The worked configs of mmdet and mmseg, through mim, on generated shapes.

In the environment of ``tox -e dense`` only: these need mmdet and mmseg.
"""

import json
import sys

import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from runs import CONFIGS, ROOT, mim, weights

sys.path.insert(0, str(ROOT / 'tools'))
from shapes_data import make  # noqa: E402

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


def user_config(folder, base, dataset, **more):
    """A user's file on a worked config: small data, one epoch."""
    make(folder / 'data', 8, SIZE)
    cfg = Config.fromfile(str(CONFIGS / base))
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.init_weights()
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


def scalars(work_dir):
    file, = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row for row in rows if 'loss' in row]


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
@pytest.mark.parametrize(('library', 'base', 'dataset', 'more', 'predicts'), [
    ('mmdet', 'mmdet/retinanet_r50_fpq_w4a4_coco.py', DETECTION, {},
     'bbox_head.retina_cls'),
    ('mmsegmentation', 'mmseg/segformer_mit_b0_fpq_w4a4_ade20k.py',
     SEGMENTATION,
     dict(model=dict(data_preprocessor=dict(size=(SIZE, SIZE)),
                     backbone=dict(init_cfg=None))),
     'decode_head.conv_seg'),
])
def test_a_users_config_trains(tmp_path, backend, library, base, dataset,
                               more, predicts):
    path = user_config(tmp_path, base, dataset, **more)
    work_dir = tmp_path / 'run'
    output = mim(
        'train', library, path, '--work-dir', work_dir, '--cfg-options',
        f'default_hooks.fpq.backend={backend}', cwd=tmp_path,
        PYTHONPATH=str(ROOT), FPQ_COMPILE='0', OMP_NUM_THREADS='1')
    rows = scalars(work_dir)
    assert len(rows) == 4
    assert all(0 < row['loss_csd'] < 1e4 for row in rows)
    state = weights(work_dir / 'epoch_1.pth')
    assert int(state[f'{predicts}.weight_quantizer.bits']) == 8
    assert all(int(v) == 1 for k, v in state.items()
               if k.endswith('.initialized'))
    fp = weights(tmp_path / 'fp.pth')
    assert set(fp) < set(state)
    assert 'leaves out' not in output
