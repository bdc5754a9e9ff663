# MobileNetV2 of the usual width (2.2 M parameters) on maps of 28 x 28 to
# 4 x 4: for a GPU.
_base_ = ['./mobilenet_v2_fashion_mnist.py']

model = dict(backbone=dict(widen_factor=1.0, stem_stride=1))
