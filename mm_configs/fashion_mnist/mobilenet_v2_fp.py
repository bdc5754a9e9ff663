# The full-precision teacher.
_base_ = [
    '../_base_/fashion_mnist.py',
    '../_base_/mobilenet_v2_fashion_mnist.py',
    '../_base_/fashion_mnist_6e.py',
]

# Not for training: lets torch >= 2.6 read mmengine's checkpoints in mim test.
custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)

param_scheduler = dict(T_max=3)
train_cfg = dict(max_epochs=3)
