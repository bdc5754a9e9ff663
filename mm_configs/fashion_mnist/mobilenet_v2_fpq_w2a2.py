_base_ = ['./mobilenet_v2_fpq_w4a4.py']

default_hooks = dict(
    fpq=dict(weight=dict(bits=2), activation=dict(bits=2)))
