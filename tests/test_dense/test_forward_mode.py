"""PointRend has no mode 'tensor': calibration and teacher run its loss."""

import copy

import torch
from dense_models import build
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from fpq_plugin import CSDLoss, Distiller, calibrate, convert
from fpq_plugin.openmmlab.model_families import (
    behind_proposals,
    calibration_forward,
    only_in_loss_mode,
    teacher_forward,
)

SIZE = 64


def test_point_rend_is_calibrated_and_distilled():
    model = build('mmseg',
                  'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py')
    model.data_preprocessor.size = (SIZE, SIZE)
    sample = SegDataSample(gt_sem_seg=PixelData(
        data=torch.randint(0, 150, (1, SIZE, SIZE))))
    sample.set_metainfo(dict(img_shape=(SIZE, SIZE)))
    batch = dict(inputs=[torch.randint(256, (3, SIZE, SIZE))] * 2,
                 data_samples=[sample] * 2)
    teacher = copy.deepcopy(model)
    convert(model)
    assert only_in_loss_mode(model)
    forward = calibration_forward(model)
    calibrate(model, [batch], forward=forward, training=True)
    distiller = Distiller(model, teacher, CSDLoss(),
                          run_teacher=teacher_forward(model),
                          skip=behind_proposals(model))
    data = model.data_preprocessor(batch, True)
    model(**data, mode='loss')
    found = distiller.layer_losses()
    assert 'decode_head.0.conv_seg' in found
    assert not any(name.startswith('decode_head.1') for name in found)
    assert 0 < distiller.loss() < 1e6


def test_other_segmentors_run_in_tensor_mode():
    assert not only_in_loss_mode(build(
        'mmseg', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'))
