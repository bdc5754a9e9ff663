# SegFormer on ADE20K at 4 bits: mim train mmsegmentation <this file>
# The first layer and the one that predicts have 8 bits.
_base_ = [
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    '../_base_/fpq.py',
]

default_hooks = dict(fpq=_base_.fpq)
load_from = 'https://download.openmmlab.com/mmsegmentation/v0.5/segformer/segformer_mit-b0_512x512_160k_ade20k/segformer_mit-b0_512x512_160k_ade20k_20210726_101530-8ffa8fda.pth'  # noqa: E501
