"""Which layers XNNPACK computes on integers is read from what it took."""

from types import SimpleNamespace

import pytest
import torch
from exported_models import quantized
from torch import nn

from fpq_plugin.export.executorch_kernels import find_kernels
from fpq_plugin.export.program import HAS_EXPORT, build_program
from fpq_plugin.targets import EXECUTORCH

pytestmark = pytest.mark.skipif(
    not HAS_EXPORT, reason='this torch has no torch.export that can be told')


@pytest.fixture
def x():
    return torch.randn(6, 3, 8, 8)


def untaken(model, x):
    """What :func:`find_kernels` says if XNNPACK takes nothing."""
    program = build_program(model, x, 2, target=EXECUTORCH)
    return find_kernels(model, SimpleNamespace(
        exported_program=lambda: program.run_decompositions()))


def test_reasons_are_those_of_the_program(x):
    model = quantized(nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Sigmoid()), x)
    found = untaken(model, x)
    assert found.layers == (('0', 'XNNPACK has none for it'),
                            ('2', 'the output is not quantized'))
    assert found.on_integers() == 0
    assert dict(found.outside)['convolution'] == 2
    model[2].input_quantizer = None
    assert dict(untaken(model, x).layers) == {
        '0': 'the output is not quantized', '2': 'the input is not quantized'}
