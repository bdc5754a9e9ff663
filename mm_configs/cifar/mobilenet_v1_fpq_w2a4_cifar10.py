_base_ = ['./mobilenet_v1_fpq_w4a4_cifar10.py']

default_hooks = dict(
    fpq=dict(weight=dict(bits=2), activation=dict(bits=4)))
