# The full-precision teacher.
_base_ = [
    '../_base_/fashion_mnist.py',
    '../_base_/vit_fashion_mnist.py',
    '../_base_/fashion_mnist_6e.py',
]

# Not for training: lets torch >= 2.6 read mmengine's checkpoints in mim test.
custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = dict(T_max=5)
train_cfg = dict(max_epochs=5)
