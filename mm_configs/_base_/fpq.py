# A fragment: the hook's defaults at W4A4, for inheritance. A config needs
# none; written out it is
#   custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)
#   default_hooks = dict(fpq=dict(type='FPQHook', bits='w4a4'))
# To inherit this file instead, name it beside a config of the zoo in _base_
# and put the hook in:
#   default_hooks = dict(fpq=_base_.fpq)
custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)

fpq = dict(
    type='FPQHook', weight=dict(bits=4), activation=dict(bits=4))
