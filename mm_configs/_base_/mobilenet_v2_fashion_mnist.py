# MobileNetV2 of a quarter of the width for 28 x 28 gray images: maps of
# 14 x 14 after the stem, 2 x 2 at the end; two cores train it.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='fpq_plugin.backbones.MobileNetV2_CIFAR',
        in_channels=1,
        stem_stride=2,
        widen_factor=0.25),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=1280,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
