# RetinaNet on COCO at 4 bits: mim train mmdet <this file>
# The first layer has 8 bits; so have here the two that predict. (The rule for
# the last goes by the order of construction, which tells little here.)
_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/fpq.py',
]

eight_bits = dict(weight=dict(bits=8), activation=dict(bits=8))
default_hooks = dict(
    fpq=dict(
        _base_.fpq,
        overrides={
            'bbox_head.retina_cls': eight_bits,
            'bbox_head.retina_reg': eight_bits,
        }))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'  # noqa: E501

optim_wrapper = dict(optimizer=dict(lr=0.001))
