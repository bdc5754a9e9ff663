# torch.ao's own fake quantizers: ranges by moving average, nothing learned.
_base_ = ['../fpq_w4a4.py']

fpq = dict(
    weight=dict(type='TorchAOFakeQuantize'),
    activation=dict(type='TorchAOFakeQuantize'),
    perturbation=None,
    distillation=None)
