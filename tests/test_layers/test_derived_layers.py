"""Classes made at run time: in pickles, in other processes."""

import functools
import io
import multiprocessing

import pytest
import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from torch import nn

import fpq_plugin
from fpq_plugin import calibrate, to_float
from fpq_plugin.layers import quantized_layers, register_weight_reader


@pytest.fixture
def convert(backend):
    return functools.partial(fpq_plugin.convert, backend=backend)


class Doubled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return super().forward(2 * x)


class Named(nn.Conv2d):
    """A convolution of another name, with state of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.note = 'kept'


@register_weight_reader
class Tied(nn.Module):
    """Reads its layer's weight."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.linear(x, self.encode.weight)


class Attention(nn.MultiheadAttention):
    """A subclass that attends to itself."""

    def forward(self, x):
        return super().forward(x, x, x)[0]


def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), Doubled(4, 4, 3), Named(4, 4, 1),
        ConvWS2d(4, 8, 2), nn.Flatten(2), nn.Linear(9, 8), Tied(),
        Attention(8, 2, batch_first=True),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 1),
        nn.Linear(8, 2)).eval()


@pytest.fixture
def model(convert, x):
    model = net()
    convert(model, perturbation=dict(p=0.5), attention=dict(bits=8))
    calibrate(model, [x])
    return model.eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_whole_model_comes_back(model, x):
    other = through_a_file(model)
    assert torch.equal(other(x), model(x))
    assert [type(m) for m in other.modules()] == [
        type(m) for m in model.modules()]
    assert other[2].note == 'kept'
    state, again = model.state_dict(), other.state_dict()
    assert list(state) == list(again)
    clocks = {id(layer.perturbation.clock)
              for layer in quantized_layers(other).values()}
    assert len(clocks) == 1


def test_what_came_back_is_trained_and_made_float(model, x):
    other = through_a_file(model)
    other.train()(x).square().mean().backward()
    assert all(p.grad is not None for n, p in other.named_parameters()
               if 'in_proj_bias' not in n and 'encode.bias' not in n)
    plain = through_a_file(to_float(other.eval()))
    assert [type(m) for m in plain.modules()] == [
        type(m) for m in net().modules()]
    assert torch.equal(plain(x), to_float(model)(x))


def test_one_layer_alone(model):
    for layer in quantized_layers(model).values():
        other = through_a_file(layer)
        assert type(other) is type(layer)
        assert torch.equal(other.quantized_weight(other.weight),
                           layer.quantized_weight(layer.weight))


def test_another_process_takes_it_and_sends_it_back(convert, tmp_path):
    model = nn.Sequential(
        nn.Linear(8, 8),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 1)).eval()
    x = torch.randn(5, 3, 8)
    convert(model)
    calibrate(model, [x])
    path = str(tmp_path / 'model.pth')
    process = multiprocessing.get_context('spawn').Process(
        target=torch.save, args=(model, path))
    process.start()
    process.join(100)
    assert process.exitcode == 0
    other = torch.load(path, weights_only=False)
    assert torch.equal(other(x), model(x))


def test_brevitas_own_quantizers_are_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    fpq_plugin.convert(
        model, backend='brevitas',
        weight=dict(type='Int8WeightPerChannelFloat', bits=8))
    with pytest.raises(TypeError, match=r'BrevitasConv2d: .*state_dict\(\)'):
        torch.save(model, io.BytesIO())
