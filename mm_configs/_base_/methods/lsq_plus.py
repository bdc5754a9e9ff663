# LSQ+: learned offsets, and weights that start from three deviations.
_base_ = ['../fpq_w4a4.py']

fpq = dict(
    weight=dict(type='LSQPlusFakeQuantize'),
    activation=dict(type='LSQPlusFakeQuantize'),
    perturbation=None,
    distillation=None)
