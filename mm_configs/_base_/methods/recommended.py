# preset='recommended', the hook's default.
custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)

fpq = dict(
    type='FPQHook', weight=dict(bits=4), activation=dict(bits=4))
