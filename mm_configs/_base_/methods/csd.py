# LSQ and channel-wise standardization distillation, without perturbation.
_base_ = ['../fpq_w4a4.py']

fpq = dict(perturbation=None)
