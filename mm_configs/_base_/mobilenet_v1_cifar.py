# MobileNetV1 for 32 x 32 images. The backbone's type is its path: a
# custom_imports here would clash with that of the FPQ fragments.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='fpq_plugin.backbones.MobileNetV1_CIFAR', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=1024,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
