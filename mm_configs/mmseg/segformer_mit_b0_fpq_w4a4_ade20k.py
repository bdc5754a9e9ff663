# SegFormer on ADE20K at 4 bits: mim train mmsegmentation <this file>
# The first layer has 8 bits; so has here the one that predicts. (The rule for
# the last goes by the order of construction, which tells little here.)
_base_ = [
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    '../_base_/fpq.py',
]

eight_bits = dict(weight=dict(bits=8), activation=dict(bits=8))
default_hooks = dict(
    fpq=dict(
        _base_.fpq, overrides={'decode_head.conv_seg': eight_bits}))
load_from = 'https://download.openmmlab.com/mmsegmentation/v0.5/segformer/segformer_mit-b0_512x512_160k_ade20k/segformer_mit-b0_512x512_160k_ade20k_20210726_101530-8ffa8fda.pth'  # noqa: E501
