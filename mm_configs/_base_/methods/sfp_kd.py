# Stronger noise, beside strong distillation of the logits in CSD's place.
_base_ = ['../fpq_w4a4.py']

fpq = dict(
    perturbation=dict(p=0.5),
    distillation=dict(
        _delete_=True, type='LogitKD', loss_weight=3.0, temperature=4.0))
