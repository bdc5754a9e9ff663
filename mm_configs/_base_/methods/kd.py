# LSQ and distillation of the logits (Hinton), without perturbation.
_base_ = ['../fpq_w4a4.py']

fpq = dict(
    perturbation=None,
    distillation=dict(
        _delete_=True, type='LogitKD', loss_weight=1.0, temperature=4.0))
