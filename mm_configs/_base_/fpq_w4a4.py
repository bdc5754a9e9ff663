# A fragment: the paper's preset at W4A4, for inheritance, every part written
# out. It is used as fpq.py is.
custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)
#   default_hooks = dict(fpq=dict(type='FPQHook', bits='w4a4', preset='paper'))
# To inherit this file instead, name it beside a config of the zoo in _base_
# and put the hook in:
#   default_hooks = dict(fpq=_base_.fpq)
custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)

fpq = dict(
    type='FPQHook',
    preset='paper',
    backend='torch_ao',
    weight=dict(type='LSQFakeQuantize', bits=4),
    activation=dict(type='LSQFakeQuantize', bits=4),
    perturbation=dict(type='StochasticFeaturePerturbation', p=0.1),
    distillation=dict(type='CSDLoss', loss_weight=1.0),
    teacher=None,
    calibration=dict(num_images=100),
    first_last_bits=8,
    skip=[],
    overrides={})
