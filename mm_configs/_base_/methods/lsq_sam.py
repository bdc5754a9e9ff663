# LSQ and sharpness-aware minimization. Put the second key in as well:
#   optim_wrapper = _base_.sam
custom_imports = dict(
    imports=['fpq_plugin', 'fpq_plugin.optim'], allow_failed_imports=False)
_base_ = ['../fpq_w4a4.py']

fpq = dict(perturbation=None, distillation=None)
sam = dict(type='SAMOptimWrapper', rho=0.05)
