_base_ = ['./vit_lsq_w4a4.py']

default_hooks = dict(
    fpq=dict(weight=dict(bits=2), activation=dict(bits=2)))
