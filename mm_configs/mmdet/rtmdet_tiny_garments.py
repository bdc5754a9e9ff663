# RTMDet-tiny in full precision on scenes of garments: some minutes of a CPU.
# python tools/garments_data.py data/garments
# mim train mmdet mm_configs/mmdet/rtmdet_tiny_garments.py
_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py']

size = (160, 160)
epochs = 12
norm = dict(type='BN')
model = dict(
    backbone=dict(norm_cfg=norm, init_cfg=None),
    neck=dict(norm_cfg=norm),
    bbox_head=dict(norm_cfg=norm, num_classes=10))

load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
]
train_pipeline = [
    *load,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    *load,
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='Pad', size=size, pad_val=dict(img=(114, 114, 114))),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor')),
]
dataset = dict(
    _delete_=True,
    type='CocoDataset',
    ann_file='coco.json',
    data_prefix=dict(img='images/'),
    metainfo=dict(
        classes=('t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal',
                 'shirt', 'sneaker', 'bag', 'boot')))
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(
        dataset, data_root='data/garments/train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        dataset,
        data_root='data/garments/t10k',
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/garments/t10k/coco.json')
test_evaluator = val_evaluator

train_cfg = dict(
    max_epochs=epochs, val_interval=epochs, dynamic_intervals=None)
optim_wrapper = dict(optimizer=dict(lr=0.002))
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs,
        by_epoch=True,
        convert_to_iter_based=True),
]
default_hooks = dict(
    checkpoint=dict(interval=epochs, max_keep_ckpts=1),
    logger=dict(interval=20))
custom_hooks = []
