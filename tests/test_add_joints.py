"""What plain PyTorch is told of joints."""

import pytest
import torch
from torch import nn

from fpq_plugin import add_joints, convert


class Inside(nn.Module):
    """Its sum's operand is made and read inside this forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.b(self.a(x) + self.a(x).relu())


def test_what_stays_float_is_told(recwarn):
    model, told = Inside(), []
    convert(model)
    add_joints(model, torch.rand(2, 3, 8, 8), warn=told.append)
    text, = told
    assert text.startswith('FPQ leaves 2 operations float that onnxruntime '
                           'could run on integers: add in the model: ')
    assert not recwarn
    model = Inside()
    convert(model)
    with pytest.warns(UserWarning, match='add in the model'):
        add_joints(model, torch.rand(2, 3, 8, 8))


def test_nothing_is_told_where_nothing_stays_float():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 2))
    convert(model)

    def tell(text):
        raise AssertionError(text)

    table = add_joints(model, torch.rand(2, 3, 8, 8), warn=tell)
    assert [row.name for row in table] == ['1.output']
