"""Which layer gives the logits; outputs that are empty or unbatched."""

from __future__ import annotations

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


def small_pair(criterion=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    teacher = copy.deepcopy(model)
    convert(model)
    calibrate(model, [data(0)])
    return model, Distiller(model, teacher, criterion or CSDLoss(),
                            **options)


def data(seed):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))


def test_losses_of_all_forwards_since_the_last_call_are_summed():
    """Gradient accumulation, several views: as if each had been taken."""
    criteria = [CSDLoss(), LogitKD()]
    model, distiller = small_pair(criteria)
    single, parts, layers = [], [], []
    for seed in (1, 2, 3):
        model(data(seed))
        single.append(distiller.loss())
        parts.append(distiller.losses())
        layers.append(distiller.layer_losses())
    sum(single).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for seed in (1, 2, 3):
        model(data(seed))
    total = distiller.loss()
    torch.testing.assert_close(total, sum(single))
    for label, part in distiller.losses().items():
        torch.testing.assert_close(part, sum(p[label] for p in parts))
    for name, part in distiller.layer_losses().items():
        torch.testing.assert_close(part, sum(p[name] for p in layers))
    total.backward()
    for parameter, grad in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, grad)


def test_asked_again_it_answers_the_same_until_the_next_forward():
    model, distiller = small_pair()
    model(data(1))
    loss = distiller.loss()
    assert torch.equal(distiller.loss(), loss)
    assert torch.equal(sum(distiller.losses().values()), loss)
    model(data(2))
    second = distiller.loss()
    assert not torch.equal(second, loss)
    model(data(1))
    assert torch.equal(distiller.loss(), loss)


@pytest.mark.parametrize('how', ['eval', 'no_grad', 'condition'])
def test_after_another_forward_a_taken_loss_is_no_more(how):
    model, distiller = small_pair(condition=lambda kwargs: not other)
    other = False
    model(data(1))
    loss = distiller.loss()
    other = how == 'condition'
    if how == 'eval':
        model.eval()(data(2))
        model.train()
    elif how == 'no_grad':
        with torch.no_grad():
            model(data(2))
    else:
        model(data(2))
    with pytest.raises(RuntimeError, match='since the loss was last taken'):
        distiller.loss()
    assert distiller.layer_losses()  # of the last training forward
    other = False
    model(data(1))
    assert torch.equal(distiller.loss(), loss)


def test_an_evaluation_between_forward_and_loss_changes_nothing():
    model, distiller = small_pair()
    model(data(1))
    model.eval()(data(2))
    loss = distiller.loss()
    model.train()(data(1))
    assert torch.equal(distiller.loss(), loss)


def test_a_forward_that_fails_counts_for_nothing():
    model, distiller = small_pair()
    model(data(1))
    with pytest.raises(RuntimeError, match='shapes'):
        model(data(1)[:, :3])
    loss = distiller.loss()
    model(data(1))
    assert torch.equal(distiller.loss(), loss)


def test_losses_that_nobody_takes_are_told_once():
    told = []
    model, distiller = small_pair(warn=told.append)
    for _ in range(210):
        model(data(1))
    assert len(told) == 1
    assert 'loss() was not called' in told[0]
    distiller.loss()
    for _ in range(99):
        model(data(1))
        distiller.loss()
    assert len(told) == 1


class Answers(nn.Module):
    """What it returns is, or is not, what its last layer does."""

    def __init__(self, how):
        super().__init__()
        self.a, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.more, self.how = nn.Parameter(torch.randn(3, 8)), how

    def forward(self, x):
        hidden = self.a(x).relu()
        logits = self.head(hidden)
        return {'as it is': lambda: logits,
                'in a tuple': lambda: (hidden, logits),
                'in a dict': lambda: dict(logits=logits),
                'of another shape': lambda: logits[..., None],
                'losses': lambda: dict(loss=logits.sum()),
                'a parameter as head': lambda: hidden @ self.more.T,
                'a temperature': lambda: 3 * logits,
                'two heads': lambda: logits + hidden @ self.more.T,
                }[self.how]()


@pytest.mark.parametrize(('how', 'told'), [
    ('as it is', False), ('in a tuple', False), ('in a dict', False),
    ('of another shape', False), ('losses', False),
    ('a parameter as head', True), ('a temperature', True),
    ('two heads', True)])
def test_guessed_logits_that_are_not_returned_are_told_once(how, told):
    said = []
    for layer in (None, 'head', 'guessed too'):
        student, teacher = pair(Answers(how))
        losses = [CSDLoss(), LogitKD(layer=layer)]
        if layer == 'guessed too':
            losses = [LogitKD(), LogitKD(layer='a')]
        distiller = Distiller(student, teacher, losses, warn=said.append)
        student(X), student(X)
        distiller.detach()
        # Whoever names the layer knows.
        assert len(said) == told * (1 + (layer == 'guessed too'))
    assert all('LogitKD compares the output of head, which is not what the '
               'model returns' in text for text in said)


@pytest.mark.parametrize('move', [
    lambda y: y.to('meta'), lambda y: y.double(), lambda y: y.bfloat16()])
def test_looking_at_the_answer_stops_no_training(move):
    """It may be on another device, or of another type."""

    class Moves(Answers):

        def forward(self, x):
            return move(super().forward(x))

    student, teacher = pair(Answers('as it is'))
    student.__class__ = Moves
    distiller = Distiller(student, teacher, LogitKD(), warn=pytest.fail)
    if move(X).dtype is not torch.bfloat16:
        student(X)
        assert distiller.has_loss()
