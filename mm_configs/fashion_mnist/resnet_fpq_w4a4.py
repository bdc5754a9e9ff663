# FPQ, the recommended preset, from the teacher's last epoch.
_base_ = [
    '../_base_/fashion_mnist.py',
    '../_base_/resnet_fashion_mnist.py',
    '../_base_/fashion_mnist_6e.py',
    '../_base_/fpq.py',
]

default_hooks = dict(fpq=_base_.fpq)
load_from = '{{$FPQ_WORK_DIRS:work_dirs}}/resnet_fp/epoch_6.pth'

optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(T_max=4)
train_cfg = dict(max_epochs=4)
