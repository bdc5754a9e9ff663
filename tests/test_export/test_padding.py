"""A convolution pads, instead of a node in front of it."""

import math
from copy import deepcopy

import onnx
import pytest
import torch
from exported_models import answers, assert_same, quantized
from torch import nn
from torch.nn.functional import pad

from fpq_plugin.export import export_onnx


class Same(nn.Module):
    """TensorFlow's padding, in front of a 3x3 convolution of a stride."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        h, w = (max((math.ceil(size / self.stride) - 1) * self.stride + 3
                    - size, 0) for size in x.shape[2:])
        return pad(x, [w // 2, w - w // 2, h // 2, h - h // 2])


class Padded(nn.Module):
    """Pads as it is told."""

    def __init__(self, *args, **options):
        super().__init__()
        self.args, self.options = args, options

    def forward(self, x):
        return pad(x, *self.args, **self.options)


class Twice(nn.Module):
    """A padded tensor that others read, too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = pad(x, [1, 1, 1, 1])
        return self.conv(x) + x[:, :, 1:-1, 1:-1]


def exported(model, x, path, target=None, **options):
    """How many Pads are left; the answers are those of the model."""
    quantized(model, x, first_last_bits=None, **options)
    export_onnx(model, path, [(x, None)], target=target)
    with torch.no_grad():
        for size in (1, 2, 5):
            assert_same(answers(path, x[:size]), model(x[:size]))
    return [node.op_type for node in onnx.load(path).graph.node].count('Pad')


def pads_of(path):
    return [list(each.ints) for node in onnx.load(path).graph.node
            for each in node.attribute if each.name == 'pads']


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(5, 3, 8, 7)


@pytest.mark.parametrize('target', [None, 'onnxruntime'])
@pytest.mark.parametrize('bits', [4, 8])
def test_a_strided_convolution_pads_by_itself(bits, target, tmp_path, x):
    model = nn.Sequential(
        Same(2), nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(),
        Same(1), nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.SiLU(),
        Same(2), nn.Conv2d(8, 8, 3, stride=2, groups=8))
    path = tmp_path / 'model.onnx'
    assert not exported(model, x, path, target, weight=dict(bits=bits),
                        activation=dict(bits=bits))
    # Height 8 needs a zero behind alone; the second has a padding of its own.
    assert pads_of(path) == [[0, 1, 1, 1], [2, 2, 2, 2], [0, 0, 1, 1]]


def test_no_quantizer_needs_to_lie_between(tmp_path, x):
    model = nn.Sequential(Same(2), nn.Conv2d(3, 4, 3, stride=2))
    path = tmp_path / 'model.onnx'
    assert not exported(model, x, path, weight=dict(bits=8), activation=None)
    assert pads_of(path) == [[0, 1, 1, 1]]


def test_a_convolution_of_one_axis_pads_by_itself(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(Padded([2, 0]), nn.Conv1d(3, 4, 3))
    path = tmp_path / 'model.onnx'
    assert not exported(model, torch.randn(5, 3, 8), path)
    assert pads_of(path) == [[2, 0]]


@pytest.mark.parametrize('layers', [
    [Padded([1, 1, 1, 1], mode='reflect'), nn.Conv2d(4, 4, 3)],
    [Padded([1, 1, 1, 1], value=0.5), nn.Conv2d(4, 4, 3)],
    [Padded([1, -1, 1, 1]), nn.Conv2d(4, 4, 3)],
    [Padded([0, 0, 0, 0, 1, 1]), nn.Conv2d(6, 4, 3)],
    [Padded([1, 1, 1, 1]), nn.ConvTranspose2d(4, 4, 3)],
    [Twice()],
])
@pytest.mark.parametrize('target', [None, 'onnxruntime'])
def test_other_pads_stay(layers, target, tmp_path, x):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *deepcopy(layers))
    assert exported(model, x, tmp_path / 'model.onnx', target) == 1
