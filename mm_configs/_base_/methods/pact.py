# PACT's learned clip on features, DoReFa's weights, as in PACT's paper.
_base_ = ['../fpq_w4a4.py']

fpq = dict(
    weight=dict(type='DoReFaFakeQuantize'),
    activation=dict(type='PACTFakeQuantize', weight_decay=5e-4),
    perturbation=None,
    distillation=None)
