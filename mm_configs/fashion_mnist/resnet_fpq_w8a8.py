# One epoch is enough at 8 bits.
_base_ = ['./resnet_fpq_w4a4.py']

default_hooks = dict(
    fpq=dict(weight=dict(bits=8), activation=dict(bits=8)))
param_scheduler = dict(T_max=1)
train_cfg = dict(max_epochs=1)
