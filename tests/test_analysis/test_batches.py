"""Batches of both kinds, and how they are drawn."""

import random

import numpy as np
import pytest
import torch
from mmengine import Config
from torch import nn
from torch.nn import functional as F

from fpq_plugin import load_model
from fpq_plugin.analysis import MMBatch, PlainBatch
from fpq_plugin.analysis.batches import (
    build_loader,
    draw_batches,
    image_shares,
    preprocessed,
)


def test_a_plain_batch_has_the_criterions_loss():
    model = nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.randint(2, (5, ))
    batch = PlainBatch(x, y)
    assert len(batch) == 5
    torch.testing.assert_close(batch.loss(model),
                               F.cross_entropy(model(x), y))
    torch.testing.assert_close(batch.output(model, 2 * x), model(2 * x))
    assert batch.right_answers(model).tolist() == (
        model(x).argmax(1) == y).tolist()


def test_several_outputs_are_one():
    x = torch.randn(4, 3)
    batch = PlainBatch(x, torch.zeros(4))
    found = batch.output(lambda x: (x, [x.view(4, 3, 1), 2 * x]))
    torch.testing.assert_close(found, torch.cat([x, x, 2 * x], 1))


def test_shares_are_those_of_the_images():
    batches = [PlainBatch(torch.zeros(n, 1), torch.zeros(n)) for n in (6, 2)]
    assert image_shares(batches) == [0.75, 0.25]


def test_an_openmmlab_batch_is_what_mim_test_sees(trained):
    model = load_model(*trained.pairs('full'))
    loader = build_loader(trained.config('full'), 'val')
    raw = draw_batches(loader, 30, 0, progress=False)
    [batch] = preprocessed(model, raw)
    labels = torch.cat([s.gt_label for s in raw[0]['data_samples']])
    images = torch.stack(raw[0]['inputs']).float()
    torch.testing.assert_close(batch.inputs, (images - 72.94) / 90.02)
    logits = model.head(model.extract_feat(batch.inputs))
    torch.testing.assert_close(batch.output(model), logits)
    torch.testing.assert_close(batch.loss(model),
                               F.cross_entropy(logits, labels))
    right = batch.right_answers(model)
    assert right.tolist() == (logits.argmax(1) == labels).tolist()
    assert 0.5 < right.float().mean() < 1
    assert 'pred_label' not in batch._data['data_samples'][0]


def test_inputs_that_are_no_tensor_are_refused():
    model = nn.Identity()
    model.data_preprocessor = lambda data, training: data
    with pytest.raises(TypeError, match="tensor 'inputs', got list"):
        MMBatch(model, dict(inputs=[1, 2]))


def random_state():
    return (random.getstate(), np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist())


def test_a_draw_depends_on_its_seed_alone(trained):
    config = trained.config('full')
    config.train_dataloader.dataset.pipeline = [
        dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
    loader = build_loader(config, 'train')
    images = []
    for seed in (0, 0, 1):
        np.random.rand()
        before = random_state()
        batches = draw_batches(loader, 130, seed, progress=False)
        assert random_state() == before
        images.append(torch.cat([torch.stack(b['inputs']) for b in batches]))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    # Without repetition; the digits are all different.
    assert len(images[0].flatten(1).unique(dim=0)) == 130


def test_what_cannot_be_drawn_is_told(trained):
    config = trained.config('full')
    with pytest.raises(ValueError, match='1401 images asked for, the data '
                       'set has 1400'):
        draw_batches(build_loader(config, 'train'), 1401, 0, progress=False)
    with pytest.raises(ValueError, match='no val_dataloader; name another '
                       'split of train, val, test'):
        build_loader(Config(), 'val')
