"""Self-supervised models: the teacher sees the student's views and masks."""

import copy

import pytest
import torch
from mmengine import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from runs import CONFIGS, log_of, scalars_of
from torch import nn
from torch.utils.data import Dataset

from fpq_plugin import Recipe
from fpq_plugin.layers import quantized_layers
from fpq_plugin.openmmlab.model_families import (
    convert_mm_model,
    has_logits,
)

PREPROCESSOR = dict(type='SelfSupDataPreprocessor', mean=[127.0] * 3,
                    std=[60.0] * 3)
VIT = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
MAE = dict(
    type='MAE', data_preprocessor=PREPROCESSOR,
    backbone=dict(type='MAEViT', arch=VIT, img_size=32, patch_size=4,
                  mask_ratio=0.75),
    neck=dict(type='MAEPretrainDecoder', num_patches=64, patch_size=4,
              embed_dim=16, decoder_embed_dim=16, decoder_depth=1,
              decoder_num_heads=2),
    head=dict(type='MAEPretrainHead', patch_size=4,
              loss=dict(type='PixelReconstructionLoss', criterion='L2')))
VIEWS = dict(
    data_preprocessor=PREPROCESSOR,
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=8,
                  stem_channels=8),
    neck=dict(type='NonLinearNeck', in_channels=64, hid_channels=16,
              out_channels=8, num_layers=2, with_avg_pool=True))
SIMSIAM = dict(
    VIEWS, type='SimSiam',
    head=dict(type='LatentPredictHead',
              loss=dict(type='CosineSimilarityLoss'),
              predictor=dict(type='NonLinearNeck', in_channels=8,
                             hid_channels=4, out_channels=8,
                             with_avg_pool=False, with_last_bn=False)))
BYOL = dict(SIMSIAM, type='BYOL')


@DATASETS.register_module()
class NoiseViews(Dataset):
    """Pictures of noise, in ``views`` views each."""

    def __init__(self, views):
        self.views = views

    def __len__(self):
        return 8

    def __getitem__(self, index):
        from mmpretrain.structures import DataSample
        generator = torch.Generator().manual_seed(index)
        views = [torch.randint(256, (3, 32, 32), generator=generator)
                 for _ in range(self.views)]
        return dict(inputs=views if self.views > 1 else views[0],
                    data_samples=DataSample())


def runner_of(tmp_path, model, backend='torch_ao', bits=8, **options):
    """Two FPQ iterations on noise, to be run."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(str(CONFIGS / '_base_/fpq.py'))
    cfg.merge_from_dict(dict(
        default_scope='mmpretrain',
        model=copy.deepcopy(model),
        train_dataloader=dict(
            batch_size=4, num_workers=0,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='NoiseViews',
                         views=1 if model['type'] == 'MAE' else 2)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        randomness=dict(seed=0),
        work_dir=str(tmp_path / 'run'),
        experiment_name=tmp_path.name,
        load_from=str(tmp_path / 'fp.pth')))
    cfg.default_hooks.fpq = dict(
        cfg.fpq, backend=backend, weight=dict(bits=bits),
        activation=dict(bits=bits), calibration=dict(num_images=8), **options)
    torch.manual_seed(0)
    start = MODELS.build(cfg.model)
    start.init_weights()
    torch.save(start.state_dict(), tmp_path / 'fp.pth')
    return Runner.from_cfg(cfg)


def test_batch_norms_are_not_set_anew(tmp_path):
    """They have no forward but that of training, which may fill a queue."""
    states = []
    for name, more in (('with', {}), ('without', dict(batch_norms=None))):
        folder = tmp_path / name
        folder.mkdir()
        runner = runner_of(folder, SIMSIAM, **more)
        runner.train()
        states.append(runner.model.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.parametrize('model', [MAE, SIMSIAM], ids=lambda m: m['type'])
def test_every_layer_is_compared_on_the_same_input(tmp_path, backend, model):
    runner = runner_of(tmp_path, model, backend, perturbation=None)
    runner.train()
    losses = scalars_of(tmp_path / 'run', 'loss_csd')
    layers = quantized_layers(runner.model)
    log = log_of(tmp_path / 'run')
    assert 'leaves out' not in log
    assert 'leaves float' not in log
    if model is MAE:
        # Maps of other patches would have a distance of about 2 a layer.
        assert 0 < losses[0] < 0.02 * len(layers)
    assert len(losses) == 2


def test_the_masks_are_those_of_a_run_without_fpq(tmp_path):
    """The teacher's forward leaves the random numbers to the student."""
    masks = {}
    for kind, options in (('fpq', {}),
                          ('plain', dict(distillation=None))):
        (tmp_path / kind).mkdir()
        runner = runner_of(tmp_path / kind, MAE, **options)
        found = masks[kind] = []
        runner.model.backbone.register_forward_hook(
            lambda module, args, out, found=found: found.append(out[1])
            if module.training else None)
        runner.train()
    assert len(masks['fpq']) == 2
    torch.testing.assert_close(masks['fpq'], masks['plain'])


def test_a_model_that_averages_itself_is_refused(tmp_path):
    runner = runner_of(tmp_path, dict(BYOL, base_momentum=0.01))
    with pytest.raises(ValueError, match="BYOL: its 'target_net' is a moving"):
        runner.train()


def test_what_makes_the_targets_stays_float(tmp_path):
    runner = runner_of(tmp_path, MAE)
    runner.model.target_generator = nn.Conv2d(3, 4, 3)
    runner.call_hook('before_run')
    assert type(runner.model.target_generator) is nn.Conv2d
    assert 'patch_embed' in ' '.join(quantized_layers(runner.model))


def test_targets_without_a_layer_to_quantize(tmp_path):
    """BEiT's tokenizer has convolutions of its own kind."""
    runner = runner_of(tmp_path, MAE)
    runner.model.target_generator = nn.BatchNorm2d(3)
    runner.call_hook('before_run')
    assert quantized_layers(runner.model)


def classifier(head):
    """A classifier of MMPretrain whose last linear layer is its head's."""
    init_default_scope('mmpretrain')
    return MODELS.build(dict(
        type='ImageClassifier',
        backbone=dict(type='LeNet5', num_classes=-1), head=head))


LINEAR = dict(type='LinearClsHead', in_channels=120, num_classes=5)


@pytest.mark.parametrize(('head', 'options', 'expected'), [
    (LINEAR, {}, True),
    (dict(type='VisionTransformerClsHead', in_channels=120, num_classes=5),
     {}, True),
    # Classes that do not exclude each other; several tasks.
    (dict(type='MultiLabelLinearClsHead', in_channels=120, num_classes=5),
     {}, False),
    (dict(type='MultiTaskHead', in_channels=120,
          task_heads=dict(a=LINEAR, b=LINEAR)), {}, False),
    # The last quantized layer is not the one of the logits.
    (LINEAR, dict(skip=['head']), False),
])
def test_logits_are_those_of_a_classifiers_head(backend, head, options,
                                                expected):
    model = classifier(head)
    convert_mm_model(model, Recipe(backend=backend, **options))
    assert has_logits(model) is expected


def test_a_model_that_is_no_classifier_has_none():
    model = nn.Sequential(nn.Linear(4, 4))
    convert_mm_model(model, Recipe())
    assert not has_logits(model)
