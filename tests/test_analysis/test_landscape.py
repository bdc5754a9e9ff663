"""Slices of the loss against closed forms."""

import math

import pytest
import torch
from torch import nn

from fpq_plugin.analysis import (
    PlainBatch,
    filter_normalised,
    loss_slice,
    mean_loss,
)


def test_filter_normalised_directions_have_the_filters_norms():
    weights = [torch.randn(4, 3, 2, 2), torch.randn(5, 7)]
    weights[0][1] = 0
    for weight, direction in zip(weights, filter_normalised(weights)):
        assert direction.shape == weight.shape
        torch.testing.assert_close(
            direction.flatten(1).norm(dim=1),
            weight.flatten(1).norm(dim=1))


def test_slices_of_a_quadratic_are_parabolas():
    model = nn.Linear(3, 2, bias=False).double()
    batch = PlainBatch(
        torch.randn(6, 3).double(), torch.randn(6, 2).double(),
        nn.functional.mse_loss)
    steps = [-1, -0.5, 0, 0.5, 1]
    line = loss_slice(model, [batch], steps)
    assert math.isclose(line[2], mean_loss(model, [batch]))
    third = line.diff().diff().diff()
    torch.testing.assert_close(third, torch.zeros(2).double())
    plane = loss_slice(model, [batch], steps, axes=2)
    assert math.isclose(plane[2, 2], line[2])
    torch.testing.assert_close(plane[:, 2], line)
    mixed = plane.diff(dim=0).diff(dim=1)
    torch.testing.assert_close(mixed, mixed[:1, :1].expand(4, 4))
    with pytest.raises(ValueError, match='axes must be 1 or 2'):
        loss_slice(model, [batch], steps, axes=3)
