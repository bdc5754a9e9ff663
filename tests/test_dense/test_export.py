"""Detectors and segmentors in a file: the framework's answers, the metric.

In the environment of ``tox -e dense`` only: these need mmdet and mmseg.
"""

import copy

import pytest
import torch
from dense_models import build
from dense_runs import DETECTION, SEGMENTATION, SIZE, TRAIN, user_config, wake
from mmdet.structures import DetDataSample
from mmengine import Config
from mmengine.runner import Runner

import fpq_plugin
from fpq_plugin.export import export_onnx
from fpq_plugin.export.formats import format_of
from fpq_plugin.openmmlab.evaluation import answered_by, evaluate_file
from fpq_plugin.openmmlab.export_run import export_checkpoint

DETECTORS = {
    'RetinaNet': ('retinanet/retinanet_r18_fpn_1x_coco.py', 10),
    'FCOS': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 15),
}


@pytest.mark.parametrize('name', DETECTORS)
def test_the_engines_maps_give_the_same_boxes(name, tmp_path):
    config, outputs = DETECTORS[name]
    torch.manual_seed(0)
    model = build('mmdet', config)
    model.init_weights()
    wake(model, 128)
    images = 2 * torch.randn(4, 3, 128, 128)
    eight = dict(bits=8)
    fpq_plugin.convert(model, weight=eight, activation=eight,
                       target='onnxruntime')
    fpq_plugin.add_joints(model, images, target='onnxruntime')
    fpq_plugin.calibrate(model, [images])
    path = tmp_path / 'model.onnx'
    report = export_onnx(model.eval(), path, [(images, None)],
                         target='onnxruntime', tolerance=0.5)
    assert len(report.parity.outputs) == outputs
    sample = DetDataSample(metainfo=dict(
        img_shape=(128, 128), ori_shape=(128, 128), scale_factor=(1., 1.),
        batch_input_shape=(128, 128), pad_shape=(128, 128)))

    def boxes():
        samples = [copy.deepcopy(sample) for _ in images]
        with torch.no_grad():
            return [each.pred_instances
                    for each in model.predict(images, samples)]

    wanted = boxes()
    with answered_by(model, format_of(path).open(path)):
        found = boxes()
    for own, other in zip(found, wanted):
        assert len(other) > 10
        top = other.scores[:10]
        torch.testing.assert_close(own.scores[:10], top, rtol=0.02, atol=0)
        overlap = (own.bboxes[:1] - other.bboxes).abs().amax(1)
        assert overlap.min() < 2  # pixels


@pytest.mark.parametrize(('base', 'dataset', 'more', 'metric'), [
    ('mmdet/retinanet_r50_fpq_w4a4_coco.py', DETECTION,
     dict(model=dict(bbox_head=dict(num_classes=2),
                     backbone=dict(init_cfg=None))),
     dict(type='CocoMetric', metric='bbox')),
    ('mmseg/segformer_mit_b0_fpq_w4a4_ade20k.py', SEGMENTATION,
     dict(model=dict(data_preprocessor=dict(size=(SIZE, SIZE)),
                     backbone=dict(init_cfg=None),
                     test_cfg=dict(mode='whole'))),
     dict(type='IoUMetric', iou_metrics=['mIoU'])),
])
def test_a_run_is_exported_and_its_file_evaluated(
        tmp_path, base, dataset, more, metric):
    data = str(tmp_path / 'data')
    if metric['type'] == 'CocoMetric':
        metric = dict(metric, ann_file=f'{data}/coco.json')
    load, *others = dataset['pipeline']
    resize = dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=True)
    test = dict(TRAIN, dataset=dict(
        dataset, data_root=data, test_mode=True,
        pipeline=[load, resize, *others]))
    path = user_config(
        tmp_path, base, dataset, test_dataloader=test,
        test_evaluator=dict(metric, _delete_=True), **more)
    cfg = Config.fromfile(str(path))
    cfg.work_dir = str(tmp_path / 'run')
    cfg.default_hooks.fpq.target = 'onnxruntime'
    for part in ('weight', 'activation'):
        cfg.default_hooks.fpq[part].bits = 8
    Runner.from_cfg(cfg).train()
    checkpoint, file = tmp_path / 'run/epoch_1.pth', tmp_path / 'model.onnx'
    export_checkpoint(copy.deepcopy(cfg), str(checkpoint), file, images=4,
                      tolerance=0.5)
    found = evaluate_file(copy.deepcopy(cfg), file, str(checkpoint))
    assert found.engine == 'onnxruntime'
    assert found.images == 8
    assert found.file.keys() == found.trained.keys()
    for name, difference in found.differences().items():
        assert abs(difference) < 0.05 * max(1, abs(found.trained[name])), name
