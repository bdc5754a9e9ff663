_base_ = ['./mobilenet_v1_fpq_w4a4_cifar100.py']

default_hooks = dict(
    fpq=dict(weight=dict(bits=2), activation=dict(bits=2)))
