# Plain LSQ: neither perturbation nor distillation.
_base_ = ['../fpq_w4a4.py']

fpq = dict(perturbation=None, distillation=None)
