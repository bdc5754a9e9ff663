"""Each kind of layer: quantized, calibrated, trained, distilled, undone."""

import copy
import functools

import pytest
import torch
from mmcv.cnn.bricks import wrappers
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from torch import nn
from torch.nn import functional as F

import fpq_plugin
from fpq_plugin import CSDLoss, Distiller, calibrate, to_float
from fpq_plugin.layers import quantized_layers


@pytest.fixture
def convert(backend):
    return functools.partial(
        fpq_plugin.convert, first_last_bits=None, backend=backend)


class Standardized(nn.Linear):
    """A user's layer: the weight's rows are normalized, the input too."""

    def forward(self, x):
        return F.linear(
            input=F.normalize(x), weight=F.normalize(self.weight),
            bias=self.bias)


class Masked(nn.Conv2d):
    """As SparK's layers: it asks for its super class by its own type."""

    def forward(self, x):
        x = super(type(self), self).forward(x)
        return x * (torch.arange(x.shape[-1]) % 2)


LAYERS = {
    'conv1d': (lambda: nn.Conv1d(4, 6, 3, padding=1), (4, 9)),
    'conv2d': (lambda: nn.Conv2d(4, 6, 3, stride=2), (4, 9, 8)),
    'circular': (lambda: nn.Conv2d(4, 6, 3, padding=1,
                                   padding_mode='circular'), (4, 9, 8)),
    'depthwise': (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 9, 8)),
    'conv3d': (lambda: nn.Conv3d(4, 6, 2), (4, 5, 4, 3)),
    'transpose1d': (lambda: nn.ConvTranspose1d(4, 6, 3, 2), (4, 5)),
    'transpose2d': (lambda: nn.ConvTranspose2d(
        4, 6, 3, 2, padding=1, output_padding=1), (4, 5, 5)),
    'grouped_transpose2d': (lambda: nn.ConvTranspose2d(
        4, 6, 3, 2, groups=2), (4, 5, 5)),
    'transpose3d': (lambda: nn.ConvTranspose3d(4, 6, 2, 2), (4, 2, 2, 3)),
    'linear': (lambda: nn.Linear(4, 6), (5, 4)),
    'mmcv_conv2d': (lambda: wrappers.Conv2d(4, 6, 3), (4, 9, 8)),
    'mmcv_conv3d': (lambda: wrappers.Conv3d(4, 6, 2), (4, 5, 4, 3)),
    'mmcv_transpose2d': (lambda: wrappers.ConvTranspose2d(4, 6, 3, 2),
                         (4, 5, 5)),
    'mmcv_transpose3d': (lambda: wrappers.ConvTranspose3d(4, 6, 2),
                         (4, 2, 2, 3)),
    'mmcv_linear': (lambda: wrappers.Linear(4, 6), (5, 4)),
    'conv_ws': (lambda: ConvWS2d(4, 6, 3), (4, 9, 8)),
    'conv_aws': (lambda: ConvAWS2d(4, 6, 3), (4, 9, 8)),
    'adaptive_padding': (lambda: Conv2dAdaptivePadding(4, 6, 3, 2), (4, 9, 8)),
    'plain_subclass': (
        lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(4, 6),
        (5, 4)),
    'own_subclass': (lambda: Standardized(4, 6), (5, 4)),
    'super_of_own_type': (lambda: Masked(4, 6, 3), (4, 9, 8)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    make, shape = LAYERS[request.param]
    return make(), torch.randn(8, *shape)


def test_at_8_bits_the_output_is_nearly_that_of_the_float_layer(
        convert, case):
    layer, x = case
    model = nn.Sequential(layer)
    expected = model(x)
    kind = type(layer)
    table = convert(model, weight=dict(bits=8), activation=dict(bits=8))
    assert [(r.type, r.weight_bits) for r in table] == [(kind.__name__, 8)]
    calibrate(model, [x])
    out = model.eval()(x)
    assert not torch.equal(out, expected)
    assert (out - expected).abs().max() < 0.02 * expected.abs().max()
    assert to_float(model)[0] is layer
    assert type(layer) is kind
    assert torch.equal(model(x), expected)


def test_weight_and_input_are_on_their_grids(convert, case):
    """The operation of one layer sees 2**bits values a channel at most."""
    layer, x = case
    model = nn.Sequential(layer)
    convert(model, weight=dict(bits=2), activation=dict(bits=3))
    calibrate(model, [x])
    seen = {}

    class Spy(torch.overrides.TorchFunctionMode):

        def __torch_function__(self, func, types, args=(), kwargs=None):
            name = getattr(func, '__name__', '')
            if name.startswith(('conv', 'linear')):
                seen['x'], seen['weight'] = args[0], args[1]
            return func(*args, **(kwargs or {}))

    with Spy():
        model.eval()(x)
    if not seen:  # the layer's own mode is inside ours
        seen['x'] = layer.quantized_input(x)
        seen['weight'] = layer.quantized_weight(layer.weight)
    assert seen['x'].unique().numel() <= 8
    axis = layer.weight_axis
    assert all(
        channel.unique().numel() <= 4
        for channel in seen['weight'].movedim(axis, 0))


def test_every_parameter_and_scale_gets_a_gradient(convert, case):
    layer, x = case
    model, teacher = nn.Sequential(layer), copy.deepcopy(nn.Sequential(layer))
    convert(model, weight=dict(bits=3), activation=dict(bits=3),
            perturbation=dict(p=1.0))
    calibrate(model, [x])
    distiller = Distiller(model, teacher, CSDLoss())
    out = model.train()(x)
    assert list(distiller.layer_losses()) == ['0']
    loss = distiller.loss()
    assert 0 < loss < 4
    (loss + out.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    layer, = quantized_layers(model).values()
    assert layer.weight_quantizer.scale.numel() == layer.weight.shape[
        layer.weight_axis]


def test_csd_standardizes_the_channels_of_the_output(convert, case):
    """A per-channel affine change of the teacher's map costs nothing."""
    layer, x = case
    model, teacher = nn.Sequential(layer), copy.deepcopy(nn.Sequential(layer))
    convert(model, weight=dict(bits=8), activation=dict(bits=8))
    calibrate(model, [x])
    distiller = Distiller(model, teacher, CSDLoss())
    model.train()(x)
    axis = layer.channel_axis
    with torch.no_grad():
        reference = teacher(x)
        maps = reference.movedim(axis, -1).flatten(0, -2)
        assert maps.shape[1] == 6 or maps.shape[1] == 8
    assert distiller.loss() < 0.01


def test_a_transposed_convolution_takes_an_output_size(convert):
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3, 2, padding=1))
    x = torch.randn(2, 2, 5, 5)
    convert(model)
    calibrate(model, [x])
    assert model[0](x, output_size=[10, 10]).shape == (2, 3, 10, 10)
    assert model[0](x).shape == (2, 3, 9, 9)


def test_a_layer_that_holds_modules_stays_float(convert):

    class Adapted(nn.Linear):

        def __init__(self):
            super().__init__(4, 4)
            self.low_rank = nn.Linear(4, 4)

    table = convert(nn.Sequential(Adapted(), nn.Linear(4, 4)))
    assert [(r.name, r.weight_bits) for r in table] == [
        ('0', 32), ('0.low_rank', 4), ('1', 4)]


def test_tied_weights_stay_tied(convert):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    convert(model)
    calibrate(model, [torch.randn(5, 4)])
    model(torch.randn(5, 4)).sum().backward()
    assert model[0].weight is model[1].weight
    assert (model[0].weight_quantizer is not model[1].weight_quantizer)
