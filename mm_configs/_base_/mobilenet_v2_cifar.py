# MobileNetV2 with the stem for 32 x 32 images: stride 1 in the first two
# strided places. The backbone's type is its path: a custom_imports here would
# clash with that of the FPQ fragments.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='fpq_plugin.backbones.MobileNetV2_CIFAR', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=1280,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
