# FPQ with the logits distilled beside CSD.
_base_ = ['../fpq_w4a4.py']

fpq = dict(
    distillation=[
        dict(type='CSDLoss', loss_weight=1.0),
        dict(type='LogitKD', loss_weight=1.0, temperature=4.0),
    ])
