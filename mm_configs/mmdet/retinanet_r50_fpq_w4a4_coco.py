# RetinaNet on COCO at 4 bits: mim train mmdet <this file>
# The first layer and those that predict have 8 bits.
_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/fpq.py',
]

default_hooks = dict(fpq=_base_.fpq)
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'  # noqa: E501

optim_wrapper = dict(optimizer=dict(lr=0.001))
