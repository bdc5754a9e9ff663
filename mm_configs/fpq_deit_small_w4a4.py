_base_ = [
    'mmpretrain::deit/deit-small_4xb256_in1k.py',
    './_base_/fpq.py',
]

default_hooks = dict(fpq=_base_.fpq)
load_from = 'https://download.openmmlab.com/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'  # noqa: E501

# A tenth of the learning rate that the model was trained with.
optim_wrapper = dict(optimizer=dict(lr=1e-4))
