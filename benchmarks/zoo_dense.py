"""Detectors of mmdet and segmentors of mmseg take FPQ steps.

As ``zoo_sweep.py`` does for classifiers: two iterations of each config, in
full precision, then with the unchanged W4A4 fragment on each backend. Images
are generated shapes of 128 x 128 or more; weights are random. It needs mmdet,
mmsegmentation and mmcv with its ops (``tox -e dense``):

    python benchmarks/zoo_dense.py
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from mmengine import Config
from mmengine.registry import init_default_scope
from zoo_steps import BATCH, ITERATIONS, ROOT, run_row, shorten, sweep

SIZE = 128
# Its 900 queries are chosen from more places than 128 x 128 has.
LARGER = {'DINO': 256}
DETECTORS = {
    'RetinaNet': 'retinanet/retinanet_r18_fpn_1x_coco.py',
    'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'Faster R-CNN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'YOLOX': 'yolox/yolox_tiny_8xb8-300e_coco.py',
    'RTMDet': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'DETR': 'detr/detr_r50_8xb2-150e_coco.py',
    'Deformable DETR, two stages':
    'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'DINO': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
}
SEGMENTORS = {
    'FCN': 'fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
    'PSPNet': 'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py',
    'DeepLabV3+':
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
    'SegFormer': 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'UPerNet': 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
    'UPerNet, Swin':
    'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_'
    'ade20k-512x512.py',
    'UPerNet, BEiT': 'beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py',
    'PointRend': 'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
}
LOAD = dict(backend_args=None, type='LoadImageFromFile')


def detection_data(folder: Path, masks: bool, size: int) -> dict:
    """The shapes as mmdet reads them."""
    return dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='coco.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('rectangle', 'disc')),
        pipeline=[
            LOAD,
            dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
            dict(type='Resize', scale=(size, size)),
            dict(type='PackDetInputs'),
        ])


def segmentation_data(folder: Path) -> dict:
    """The shapes as mmseg reads them."""
    return dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('background', 'rectangle', 'disc')),
        pipeline=[
            LOAD,
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ])


def run_model(name: str) -> dict:
    """Train one model in full precision and on both backends."""
    import sys
    sys.path.insert(0, str(ROOT / 'tools'))
    from shapes_data import make

    import fpq_plugin  # noqa: F401
    size = LARGER.get(name, SIZE)
    library = 'mmdet' if name in DETECTORS else 'mmseg'
    init_default_scope(library)
    path = (DETECTORS | SEGMENTORS)[name]
    home = Path(find_spec(library).origin).parent / '.mim/configs'
    cfg = Config.fromfile(str(home / path))
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), BATCH * ITERATIONS, size)
        masks = 'mask' in str(cfg.train_dataloader.dataset.get('pipeline', ''))
        data = (detection_data(Path(folder), masks, size)
                if library == 'mmdet' else segmentation_data(Path(folder)))

        def short(work_dir: str) -> Config:
            short_cfg = cfg.copy()
            short_cfg.train_dataloader = dict(
                batch_size=BATCH,
                num_workers=0,
                sampler=dict(type='FewSamples'),
                dataset=data)
            if library == 'mmseg':
                short_cfg.model.data_preprocessor.size = (size, size)
            shorten(short_cfg, work_dir)
            return short_cfg

        row = dict(family=name, config=f'{library}::{path}', input=size)
        return run_row(row, short)


if __name__ == '__main__':
    sweep(__file__, __doc__, list(DETECTORS | SEGMENTORS), 'zoo_dense',
          run_model)
