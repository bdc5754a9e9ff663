# Plain LSQ, the baseline: FPQ without perturbation and distillation.
_base_ = ['./resnet_fpq_w4a4.py']

default_hooks = dict(fpq=dict(
    preset='paper', perturbation=None, distillation=None))
