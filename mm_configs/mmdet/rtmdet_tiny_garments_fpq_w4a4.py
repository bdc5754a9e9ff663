# The same at 4 bits, for onnxruntime: mim train mmdet <this file>
_base_ = ['./rtmdet_tiny_garments.py']

custom_imports = dict(imports=['fpq_plugin'], allow_failed_imports=False)

epochs = 2
default_hooks = dict(
    fpq=dict(type='FPQHook', bits='w4a4', target='onnxruntime'),
    checkpoint=dict(interval=epochs))
load_from = 'work_dirs/rtmdet_tiny_garments/epoch_12.pth'

train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(optimizer=dict(lr=0.0005))
param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    T_max=epochs,
    by_epoch=True,
    convert_to_iter_based=True)
