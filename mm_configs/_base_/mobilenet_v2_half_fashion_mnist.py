# Half of MobileNetV2's width.
_base_ = ['./mobilenet_v2_fashion_mnist.py']

model = dict(backbone=dict(widen_factor=0.5))
