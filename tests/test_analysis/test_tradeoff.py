"""Accuracy, size and latency against counts by hand."""

import math
import time

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import nn

import fpq_plugin
from fpq_plugin.analysis import PlainBatch
from fpq_plugin.analysis.tradeoff import (
    bits_of,
    latencies,
    top1_accuracy,
    weight_kilobytes,
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
