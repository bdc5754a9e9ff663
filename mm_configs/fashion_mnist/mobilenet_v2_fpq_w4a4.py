# FPQ, the recommended preset, from the teacher's last epoch.
_base_ = [
    '../_base_/fashion_mnist.py',
    '../_base_/mobilenet_v2_fashion_mnist.py',
    '../_base_/fashion_mnist_6e.py',
    '../_base_/fpq.py',
]

default_hooks = dict(fpq=_base_.fpq)
load_from = '{{$FPQ_WORK_DIRS:work_dirs}}/mobilenet_v2_fp/epoch_3.pth'

optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(T_max=1)
train_cfg = dict(max_epochs=1)
