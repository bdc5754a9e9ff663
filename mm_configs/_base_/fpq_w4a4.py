# Feature-perturbed quantization, 4-bit weights and activations (the paper's
# settings). Inherit this beside any config of the zoo and put the hook in:
#   default_hooks = dict(fpq=_base_.fpq)
custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)

fpq = dict(
    type='FPQHook',
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
