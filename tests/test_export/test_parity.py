"""What the comparison of a trained and an exported model tells apart."""

import pytest
import torch
from torch import nn

from fpq_plugin.export import ParityError
from fpq_plugin.export.parity import compare_batch_of, measure_parity


def compare(ours, theirs, labels=None):
    """The parity of two models with these outputs."""
    return measure_parity(nn.Identity(), [lambda _: theirs],
                          [(ours, labels)])[0]


@pytest.mark.parametrize('shape', [(50, 1), (50, ), (50, 1, 4, 4)])
def test_models_of_one_output_are_told_apart(shape):
    """There is no class: what counts is the value."""
    ours = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ParityError, match='more than 2% of their spread'):
        compare(ours, ours + 0.1).refuse(0.1)
    close = compare(ours, ours + 1e-3)
    close.refuse(0.1)
    assert close.equal() is None


def test_same_classes_do_not_hide_other_values():
    ours = 10 * torch.eye(4).repeat(20, 1)
    parity = compare(ours, ours * 2)
    assert parity.other_class == 0
    assert not parity.holds(100)


def test_classes_of_places_are_counted_by_place():
    generator = torch.Generator().manual_seed(0)
    ours, noise = torch.randn(2, 6, 5, 8, 8, generator=generator)
    theirs = ours + 0.02 * noise
    parity = compare(ours, theirs, torch.zeros(6, dtype=torch.long))
    wanted = sum(
        ours[n, :, i, j].argmax() != theirs[n, :, i, j].argmax()
        for n in range(6) for i in range(8) for j in range(8))
    assert wanted > 0
    assert (parity.answers, parity.other_class) == (6 * 8 * 8, wanted)
    assert parity.top1_trained is None


def test_of_several_outputs_the_worst_counts():
    """For its own spread; batches are summed up as one would be."""
    generator = torch.Generator().manual_seed(0)
    small, large = torch.randn(2, 60, 3, 4, generator=generator)
    small, large = 1e-3 * small + 5, 1e3 * large

    def parity(off):
        parts = zip(*(x.split(25) for x in (small, large)))
        batches = iter([(torch.zeros(len(a)), None, a, b) for a, b in parts])
        state = {}

        def ours(x):
            *_, a, b = state['batch']
            return dict(maps=[a, b])

        def theirs(x):
            *_, a, b = state['batch']
            return (a + off[0], b + off[1])

        def read():
            for batch in batches:
                state['batch'] = batch
                yield batch[:2]

        return measure_parity(ours, [theirs], read())[0]

    close = parity((0, 1.0))
    assert close.images == 60
    assert close.answers == 0
    assert [each.mean_difference for each in close.outputs] == [
        0, pytest.approx(1)]
    assert close.as_dict()['outputs'][1]['largest_difference'] == (
        pytest.approx(1))
    assert close.outputs[0].spread == pytest.approx(
        float(small.double().std(correction=0)), rel=1e-9)
    assert close.mean_difference == close.outputs[1].mean_difference
    close.refuse(0.1)
    far = parity((1e-4, 0))
    assert far.mean_difference == pytest.approx(1e-4, rel=1e-2)
    assert not far.holds(0.4)
    assert parity((4e-5, 0)).holds(0.1)
    assert not parity((6e-5, 0)).holds(0.1)
    assert not parity((float('nan'), 0)).holds(100)


def test_a_larger_tolerance_lets_outputs_differ_by_more():
    ours = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    parity = compare(ours, ours + 0.1 * ours.std())
    assert not parity.holds(0.4)
    with pytest.raises(ParityError, match='more than 8% of their spread'):
        parity.refuse(0.4)
    parity.refuse(0.6)


def test_what_is_constant_but_for_rounding_has_its_size_for_a_spread():
    """As an untrained detector's scores: -4.6 everywhere."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 50, 1, 4, 4, generator=generator)
    ours = -4.6 + 1e-6 * noise[0]
    parity = compare(ours, ours + 1e-6 * noise[1])
    assert parity.spread == pytest.approx(4.6, rel=1e-3)
    parity.refuse(0.1)
    with pytest.raises(ParityError):
        compare(ours, ours + 0.1).refuse(0.1)


def test_a_batch_of_another_size_is_held_against_each_outputs_spread():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))

    class Two(nn.Module):

        def forward(self, x):
            return 1e-3 * x, 1e3 * x

    def other(x):
        return 1e-3 * x + 1e-3 * (len(x) == 7), 1e3 * x

    known, = measure_parity(Two(), [other], [(x, None)])
    compare_batch_of(1, Two(), other, x, known)
    with pytest.raises(ParityError, match='a batch of 7 outputs differ by'):
        compare_batch_of(7, Two(), other, x, known)


def outputs_with_others(number):
    """Outputs of 400 images, and the same with so many other classes."""
    ours = 10 * torch.eye(2)[torch.arange(400) % 2]
    theirs = ours.clone()
    ours[:number] = torch.tensor([1e-3, 0.])
    theirs[:number] = torch.tensor([0., 1e-3])
    return ours, theirs


def test_labels_say_what_other_classes_cost():
    ours, theirs = outputs_with_others(20)
    labels = ours.argmax(1)
    labels[:10] = 1  # half of them were wrong before
    parity = compare(ours, theirs, labels)
    assert parity.other_class == 20
    assert parity.top1_exported == parity.top1_trained
    parity.refuse(0)
    labels[10:12] = 1
    assert compare(ours, theirs, labels).holds(0)
    labels[:12], labels[9] = 0, 1
    parity = compare(ours, theirs, labels)
    assert parity.top1_trained - parity.top1_exported == 4.5
    with pytest.raises(ParityError, match='top-1 is 4.50 points lower in the '
                       'exported model, more than 0.1'):
        parity.refuse(0.1)
    parity.refuse(4.5)


@pytest.mark.parametrize(('number', 'tolerance', 'holds'), [
    (4, 0.1, True), (5, 0.1, False), (1, 0, True), (2, 0, False)])
def test_without_labels_a_share_may_be_others(number, tolerance, holds):
    parity = compare(*outputs_with_others(number))
    assert parity.other_class == number
    assert parity.holds(tolerance) == holds


def test_a_constant_output_equals_itself():
    ours = torch.full((5, 1), 3.)
    compare(ours, ours.clone()).refuse(0.1)
    compare(0 * ours, 0 * ours).refuse(0.1)
