_base_ = [
    'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    './_base_/fpq.py',
]

default_hooks = dict(fpq=_base_.fpq)
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'  # noqa: E501

optim_wrapper = dict(optimizer=dict(lr=0.01))
