"""Modules that use weights themselves: BEiT, Swin V2, and a user's own."""

import copy
import functools

import pytest
import torch
from mmpretrain.models.utils.attention import (
    BEiTAttention,
    CrossMultiheadAttention,
    WindowMSAV2,
)
from torch import nn
from torch.nn import functional as F

import fpq_plugin
from fpq_plugin import CSDLoss, Distiller, calibrate, to_float
from fpq_plugin.layers import quantized_layers, route, unroute


@pytest.fixture
def convert(backend):
    return functools.partial(
        fpq_plugin.convert, first_last_bits=None, backend=backend)


@fpq_plugin.register_weight_reader
class Tied(nn.Module):
    """Decodes with the encoder's weight, and with a bias of its own."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 6), nn.Linear(6, 4)
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        hidden = self.encode(x)
        again = F.linear(x, self.encode.weight, self.encode.bias)
        return F.linear(hidden + again, self.decode.weight, self.bias)


class Reader(nn.Module):
    """Reads a weight, and is not registered."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(self.a(x), self.b.weight)


class Cross(CrossMultiheadAttention):

    def forward(self, x):
        return super().forward(x, x.flip(1), x)


MODULES = {
    'beit': (lambda: BEiTAttention(8, 2, (2, 2), True), (5, 8)),
    'beit_bias': (lambda: BEiTAttention(8, 2, (2, 2), False, bias=True),
                  (5, 8)),
    'swin_v2': (lambda: WindowMSAV2(8, (2, 2), 2), (4, 8)),
    'cross': (lambda: Cross(8, 2, qkv_bias=True), (5, 8)),
    'own': (Tied, (4, )),
}


@pytest.fixture(params=MODULES)
def case(request):
    make, shape = MODULES[request.param]
    module = make()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.normal_()
    return module.eval(), torch.randn(16, *shape)


def test_routing_alone_changes_nothing(case):
    module, x = case
    holder = nn.Sequential(module)
    expected, kind = holder(x), type(module)
    route(holder)
    assert type(module) is not kind
    torch.testing.assert_close(holder(x), expected, rtol=1e-5, atol=1e-6)
    unroute(holder)
    assert type(module) is kind


def test_every_linear_layer_is_calibrated_and_distilled(convert, case):
    module, x = case
    model = nn.Sequential(module)
    teacher = copy.deepcopy(model)
    keys = list(model.state_dict())
    expected = model(x)
    names = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    convert(model, weight=dict(bits=8), activation=dict(bits=8))
    calibrate(model, [x], warn=pytest.fail)
    assert set(quantized_layers(model)) >= set(names)
    torch.testing.assert_close(model(x), expected, rtol=0.2, atol=0.05)
    distiller = Distiller(model, teacher, CSDLoss(), warn=pytest.fail)
    model.train()(x)
    assert set(distiller.layer_losses()) == set(quantized_layers(model))
    assert distiller.loss() < 0.1
    distiller.detach()
    assert type(teacher[0]) is type(to_float(model)[0]) is type(case[0])
    assert list(model.state_dict()) == keys
    assert torch.equal(model.eval()(x), expected)


def test_a_layer_with_two_calls_has_two_pairs(convert):
    model = nn.Sequential(Tied())
    teacher = copy.deepcopy(model)
    convert(model)
    calibrate(model, [torch.randn(9, 4)])
    calls = []
    model[0].encode.register_forward_hook(lambda *_: calls.append(1))
    distiller = Distiller(model, teacher, CSDLoss(), warn=pytest.fail)
    model.train()(torch.randn(9, 4))
    assert len(calls) == 2
    assert set(distiller.layer_losses()) == {'0.encode', '0.decode'}


def test_an_unregistered_reader_is_told(convert):
    model = nn.Sequential(Reader())
    convert(model)
    told = []
    calibrate(model, [torch.randn(9, 4)], warn=told.append)
    assert len(told) == 1
    assert told[0].startswith('calibration reached no input of 0.b: no ')
    assert 'register_weight_reader' in told[0]


def test_a_failed_conversion_leaves_nothing_routed(convert):
    model = nn.Sequential(Tied())
    with pytest.raises(ValueError, match='skip'):
        convert(model, skip=['nothing'])
    assert type(model[0]) is Tied
