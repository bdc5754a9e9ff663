"""Which layer gives the logits; outputs that are empty or unbatched."""

import copy

import pytest
import torch
from torch import nn

from fpq_plugin import CSDLoss, Distiller, LogitKD, calibrate, convert
from fpq_plugin.distillation import DistillationLoss
from fpq_plugin.recipe import Recipe


class Heads(nn.Module):
    """A head, and others that only training calls, registered last."""

    def __init__(self, *others):
        super().__init__()
        self.a, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        for name in others:
            self.add_module(name, nn.Linear(8, 3))
        self.others = others

    def forward(self, x):
        x = self.a(x).relu()
        if self.training:
            return self.head(x), [getattr(self, n)(x) for n in self.others]
        return self.head(x)


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(5))


def pair(model, x=X):
    teacher = copy.deepcopy(model)
    convert(model)
    calibrate(model, [x], training=True)
    return model.train(), teacher


@pytest.mark.parametrize('name', ['aux', 'auxiliary_head', 'aux1',
                                  'AuxLogits', 'head_aux'])
def test_an_auxiliary_head_does_not_give_the_logits(name):
    model, teacher = pair(Heads(name))
    distiller = Distiller(model, teacher, LogitKD())
    out, _ = model(X)
    assert list(distiller.layer_losses()) == ['head']
    torch.testing.assert_close(distiller.loss(), LogitKD()(out, teacher(X)))


@pytest.mark.parametrize('criteria', [[LogitKD()], [CSDLoss(), LogitKD()]])
def test_another_head_that_is_not_called_is_refused_by_name(criteria):
    model, teacher = pair(Heads('second'))
    distiller = Distiller(model, teacher, criteria, warn=lambda text: None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match='compares second alone, and '
                           r'the teacher did not call it: .*layer='):
            model(X)
    distiller.detach()
    model(X)


def test_a_layer_that_the_student_did_not_call_is_refused_by_name():
    model, teacher = pair(Heads())
    Distiller(model, teacher, LogitKD())
    model.head = nn.Identity()
    with pytest.raises(RuntimeError, match='the student did not call it'):
        model(X)


@pytest.mark.parametrize('pattern', ['head', 'hea*', '*ead'])
def test_the_layer_is_named_by_a_pattern(pattern):
    model, teacher = pair(Heads('second'))
    distiller = Distiller(model, teacher, LogitKD(layer=pattern))
    out, _ = model(X)
    assert list(distiller.layer_losses()) == ['head']
    torch.testing.assert_close(distiller.loss(), LogitKD()(out, teacher(X)))


def test_through_a_recipe():
    recipe = Recipe(distillation=dict(type='LogitKD', layer='head'))
    assert recipe.losses()[0].layer == 'head'
    with pytest.raises(ValueError, match=r'fpq\.distillation\.layer'):
        Recipe(distillation=dict(type='LogitKD', layer=3))


@pytest.mark.parametrize(('pattern', 'said'), [
    ('neck', 'matches none. The last ones are a, head, second'),
    ('*', 'matches a, head, second'),
])
def test_a_pattern_must_match_one_layer(pattern, said):
    model, teacher = pair(Heads('second'))
    with pytest.raises(ValueError, match=said):
        Distiller(model, teacher, LogitKD(layer=pattern))


@pytest.mark.parametrize('criterion', [LogitKD(), LogitKD(layer='head')])
def test_a_layer_that_is_skipped_is_refused(criterion):
    model, teacher = pair(Heads())
    with pytest.raises(ValueError, match="head alone.*skip 'head'"):
        Distiller(model, teacher, [CSDLoss(), criterion], skip=['head'])


class MeanDistance(DistillationLoss):
    label = 'mean'

    def forward(self, student, teacher, channel_axis):
        return (student - teacher).square().mean()


CRITERIA = [
    CSDLoss(), CSDLoss(statistics='space'), CSDLoss(reduction='channel_sum'),
    CSDLoss(reduction='sum'), LogitKD(), MeanDistance()
]


@pytest.mark.parametrize('criterion', CRITERIA)
@pytest.mark.parametrize('conv', [True, False])
def test_of_outputs_without_elements_the_loss_is_zero(criterion, conv):
    model = (nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
             if conv else nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)))
    x = torch.randn(3, 4, 5, 5) if conv else X
    model, teacher = pair(model, x)
    distiller = Distiller(model, teacher, criterion)
    loss = model(x[:0]).sum() + distiller.loss()
    assert distiller.has_loss()
    assert loss.item() == 0
    loss.backward()
    assert not any(p.grad.any() for p in model.parameters())
    model(x)
    full = distiller.loss()
    model(x[:0])
    model(x)
    torch.testing.assert_close(distiller.loss(), full)


@pytest.mark.parametrize('criterion', CRITERIA[:1] + CRITERIA[3:])
@pytest.mark.parametrize('dims', [1, 2])
def test_one_sample_is_a_batch_of_one(criterion, dims):
    conv = nn.Conv1d if dims == 1 else nn.Conv2d
    for layers, x in ((nn.Sequential(conv(3, 4, 2), conv(4, 2, 2)),
                       torch.randn(3, *[7] * dims)),
                      (nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), X[0])):
        model, teacher = pair(layers, x)
        distiller = Distiller(model, teacher, criterion)
        model(x)
        alone = distiller.loss()
        model(x[None])
        torch.testing.assert_close(alone, distiller.loss())
