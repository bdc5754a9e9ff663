"""What works on the model's own proposals is not distilled."""

import pytest
from dense_models import build

from fpq_plugin import CSDLoss, Distiller, convert
from fpq_plugin.layers import quantized_layers
from fpq_plugin.openmmlab.model_families import behind_proposals
from fpq_plugin.options import matches


@pytest.mark.parametrize(('library', 'path', 'expected'), [
    ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py', []),
    ('mmdet', 'detr/detr_r50_8xb2-150e_coco.py', []),
    ('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', ['roi_head']),
    ('mmdet', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', []),
    ('mmdet', 'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-'
     '50e_coco.py', ['decoder', 'bbox_head', 'pos_trans_fc']),
    ('mmdet', 'dino/dino-4scale_r50_8xb2-12e_coco.py',
     ['decoder', 'bbox_head']),
    ('mmseg', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', []),
    ('mmseg', 'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
     ['decode_head.1']),
])
def test_parts_by_model(library, path, expected):
    assert behind_proposals(build(library, path)) == expected


def test_a_two_stage_detector_is_distilled_up_to_its_rpn():
    model = build('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    teacher = build('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    convert(model)
    picked = behind_proposals(model)
    distiller = Distiller(model, teacher, CSDLoss(), skip=picked)
    left = [n for n in quantized_layers(model) if matches(n, 'roi_head')]
    assert len(left) == 4
    assert list(distiller.left_out()) == left
    hooked = {n for n, m in model.named_modules() if m._forward_hooks}
    assert hooked >= {n for n in quantized_layers(model) if n not in left}
    assert not hooked & set(left)
