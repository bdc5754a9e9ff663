_base_ = [
    'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    './_base_/fpq.py',
]

default_hooks = dict(fpq=_base_.fpq)
load_from = 'https://download.openmmlab.com/mmclassification/v0/mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth'  # noqa: E501

optim_wrapper = dict(optimizer=dict(lr=0.01))
