# Vision transformer of three layers on patches of 7 x 7 pixels (17 tokens of
# 128 channels, 0.41 M parameters): two cores train it.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(
            embed_dims=128,
            num_layers=3,
            num_heads=4,
            feedforward_channels=256),
        img_size=28,
        patch_size=7,
        in_channels=1),
    neck=None,
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
