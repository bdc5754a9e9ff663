# FPQ, the recommended preset, from the teacher's last epoch.
_base_ = [
    '../_base_/fashion_mnist.py',
    '../_base_/vit_fashion_mnist.py',
    '../_base_/fashion_mnist_6e.py',
    '../_base_/fpq.py',
]

default_hooks = dict(fpq=_base_.fpq)
load_from = '{{$FPQ_WORK_DIRS:work_dirs}}/vit_fp/epoch_5.pth'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=0.05))
param_scheduler = dict(T_max=2)
train_cfg = dict(max_epochs=2)
