# LSQ and stochastic feature perturbation, without distillation.
_base_ = ['../fpq_w4a4.py']

fpq = dict(distillation=None)
