"""Accuracy, size and latency against counts by hand."""

from __future__ import annotations

import math
import time

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import nn

import fpq_plugin
from fpq_plugin.analysis import PlainBatch
from fpq_plugin.analysis.study import layer_rows
from fpq_plugin.analysis.tradeoff import (
    bits_of,
    latencies,
    more_kilobytes,
    overrides,
    overrides_text,
    parts_to_raise,
    top1_accuracy,
    weight_kilobytes,
    worst_layers,
)


def test_accuracy_counts_the_right_answers():
    model = nn.Identity()
    outputs = torch.tensor([[1., 0.], [0., 1.], [1., 0.], [0., 1.]])
    batches = [PlainBatch(outputs[:3], torch.tensor([0, 1, 1])),
               PlainBatch(outputs[3:], torch.tensor([1]))]
    found = top1_accuracy(model, batches)
    assert found.value == 75
    # Three times 100 and once 0.
    assert math.isclose(found.error, 50 / 4**0.5)


def test_no_accuracy_without_one_class_for_an_image():
    model = nn.Identity()
    assert top1_accuracy(model, []) is None
    assert top1_accuracy(model, [
        PlainBatch(torch.rand(2, 3), torch.rand(2, 3))]) is None
    assert top1_accuracy(model, [
        PlainBatch(torch.rand(2), torch.rand(2))]) is None


def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 8, 3, bias=False), nn.Flatten(),
                         nn.Linear(8 * 16, 10))


def test_size_is_that_of_the_table_of_layers():
    model = net()
    assert weight_kilobytes(model) == 4 * (72 + 576 + 1280) / 1000
    table = fpq_plugin.convert(model, weight=dict(bits=2))
    assert weight_kilobytes(model) == table.weight_bytes() / 1000
    assert weight_kilobytes(model) == (72 + 576 / 4 + 1280) / 1000
    assert [bits_of(model[i], 'weight') for i in (0, 1, 3)] == [8, 32, 2]
    assert [bits_of(model[i], 'input') for i in (0, 1, 3)] == [8, 32, 4]


class Sleeping(nn.Module):
    """Takes seconds of its own; says when it is called."""

    def __init__(self, name, seconds, calls):
        super().__init__()
        self.name, self.seconds, self.calls = name, seconds, calls

    def forward(self, x):
        self.calls.append((self.name, len(x)))
        time.sleep(self.seconds[min(len(self.calls) // 2, 3)])
        return x


def test_latency_is_the_median_of_calls_in_turns():
    calls = []
    batch = PlainBatch(torch.zeros(20, 2), torch.zeros(20))
    # The first call, of 0.2 s, does not count; the last, of 0.4, is not the
    # median.
    models = {name: Sleeping(name, [0.2, 0.04, 0.04, 0.4], calls)
              for name in 'ab'}
    found = latencies(models, dict.fromkeys('ab', batch), rounds=3)
    assert calls == [('a', 8), ('b', 8)] * 4
    assert found['a'] == pytest.approx(1000 * 0.04 / 8, rel=0.5)


class Classifier(nn.Module):
    """As OpenMMLab's: the largest input is the predicted class."""

    def __init__(self):
        super().__init__()
        self.data_preprocessor = lambda data, training: data

    def forward(self, inputs, data_samples, mode):
        assert mode == 'predict'
        for sample, x in zip(data_samples, inputs):
            sample.pred_label = x.argmax().view(1)
        return data_samples


@pytest.mark.parametrize(('labels', 'accuracy'), [
    ([[0], [0]], 50), ([[0], [0, 1]], None)])
def test_accuracy_of_an_openmmlab_model(labels, accuracy):
    from fpq_plugin.analysis import MMBatch
    samples = [BaseDataElement(gt_label=torch.tensor(x)) for x in labels]
    data = dict(inputs=torch.eye(2), data_samples=samples)
    found = top1_accuracy(Classifier(), [MMBatch(Classifier(), data)])
    assert (found and found.value) == accuracy
    assert all('pred_label' not in sample for sample in samples)


def eight_layers(**options):
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(8)]
    model = nn.Sequential(*(part for layer in layers
                            for part in (layer, nn.ReLU())))
    batches = [PlainBatch(torch.rand(64, 16), torch.zeros(64))]
    fpq_plugin.convert(model, **options)
    fpq_plugin.calibrate(model, [batches[0].inputs])
    return model, batches


def rows_of(model, batches):
    names = [name for name, layer in model.named_modules()
             if isinstance(layer, nn.Linear)]
    none = fpq_plugin.analysis.Estimate(0.0, 0.0)
    return layer_rows(model, batches, dict.fromkeys(names, none))


@pytest.mark.parametrize('part', ['weight', 'activation'])
def test_a_layer_made_worse_on_purpose_comes_first(part):
    rows = rows_of(*eight_layers(overrides={'6': {part: dict(bits=2)}}))
    assert worst_layers(rows)[0]['name'] == '6'
    assert overrides(rows[3:4]) == {'6': {part: dict(bits=4)}}
    # Without that it is not among the first.
    first = [row['name'] for row in worst_layers(rows_of(*eight_layers()))]
    assert '6' not in first


def test_what_is_to_be_pasted_gives_the_bits_and_less_error():
    worse = {'6': dict(weight=dict(bits=2))}
    rows = rows_of(*eight_layers(overrides=worse))
    worst = worst_layers(rows)
    options = eval(f'dict({overrides_text(worst)})')
    assert options == dict(overrides=overrides(worst))
    better = {row['name']: row for row in rows_of(
        *eight_layers(overrides={**worse, **options['overrides']}))}
    for row in worst:
        for part, bits in parts_to_raise(row).items():
            assert bits > row[f'{part}_bits']
            assert better[row['name']][f'{part}_bits'] == bits
        assert better[row['name']]['sqnr']['output'] > row['sqnr']['output']
    more = sum(better[r['name']]['weight_bits'] * r['weights']
               - r['weight_bits'] * r['weights'] for r in worst) / 8000
    assert sum(map(more_kilobytes, worst)) == pytest.approx(more)
    assert more > 0


def row(name, weight, input, output, bits=(4, 4)):
    return dict(name=name, weights=1000, weight_bits=bits[0],
                input_bits=bits[1],
                sqnr=dict(weight=weight, input=input, output=output))


def test_a_quarter_of_the_layers_and_five_at_most():
    rows = [row(str(i), 20., 20., float(-i)) for i in range(40)]
    assert [r['name'] for r in worst_layers(rows)] == [
        '39', '38', '37', '36', '35']
    assert len(worst_layers(rows[:9])) == 3
    assert len(worst_layers(rows, most=12)) == 12


def test_layers_with_nothing_to_give_are_left_out():
    assert worst_layers([
        row('8 bits', 1., 1., 1., (8, 8)),
        row('float', None, None, 1., (32, 32)),
        dict(row('not called', 1., 1., 1.), sqnr=None),
    ]) == []


@pytest.mark.parametrize(('weight', 'input', 'bits', 'raised'), [
    (10., 20., (4, 4), dict(weight=8)),
    (20., 10., (2, 2), dict(input=4)),
    (20., 15., (2, 4), dict(weight=4, input=8)),
    (20., 26.1, (3, 5), dict(weight=4)),
    (None, 10., (32, 4), dict(input=8)),
    (10., 20., (8, 4), {}),
    (10., 14., (8, 4), dict(input=8)),
])
def test_the_part_that_makes_the_error_is_raised(weight, input, bits,
                                                 raised):
    assert parts_to_raise(row('a', weight, input, 9., bits)) == raised


def test_size_counts_weights_under_other_names():
    model = nn.Sequential(nn.LSTM(4, 8), nn.Linear(8, 2))
    recurrent = 32 * 4 + 32 * 8
    assert weight_kilobytes(model) == 4 * (recurrent + 16) / 1000
    table = fpq_plugin.convert(model)
    assert weight_kilobytes(model) == (4 * recurrent + 16) / 1000
    assert weight_kilobytes(model) == table.weight_bytes() / 1000
