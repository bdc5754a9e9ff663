"""LSQ in torch.ao's own workflows: eager and graph mode, and what not."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization as ao
from torch.ao.quantization import FakeQuantizeBase
from torch.ao.quantization.quantize import _remove_qconfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

from fpq_plugin import (
    DoReFaFakeQuantize,
    LSQFakeQuantize,
    LSQPlusFakeQuantize,
    PACTFakeQuantize,
)


def qconfig(bits, activation=LSQFakeQuantize):
    return ao.QConfig(
        activation=activation.with_args(bits=bits),
        weight=LSQFakeQuantize.with_args(
            bits=bits, symmetric=True, per_channel=True))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        ao.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3),
        ao.DeQuantStub()).train()


def images():
    return torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(
        1))


def distance(model, answers):
    return float((model(images()) - answers).abs().mean() / answers.std())


@pytest.mark.parametrize('activation', [LSQFakeQuantize, PACTFakeQuantize])
def test_convert_at_8_bits_answers_the_same(activation):
    model = net()
    model.qconfig = qconfig(8, activation)
    ao.prepare_qat(model, inplace=True)
    model(images()).sum().backward()
    answers = model.eval()(images())
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warnings.filterwarnings(
            'ignore', message='.*(deprecated|reduce_range)')
        converted = ao.convert(copy.deepcopy(model))
    assert distance(converted, answers) < 0.05


@pytest.mark.parametrize('bits', [2, 4, 7])
def test_convert_at_fewer_bits_is_told(bits):
    model = net()
    model.qconfig = qconfig(bits)
    ao.prepare_qat(model, inplace=True)
    model(images())
    with pytest.warns(UserWarning, match=f'has {bits} bits, and torch.ao'):
        ao.convert(model.eval())


def test_graph_mode_trains_and_converts():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 3)).train()
    mapping = ao.QConfigMapping().set_global(qconfig(8))
    prepared = prepare_qat_fx(model, mapping, (images(), ))
    prepared(images()).square().mean().backward()
    scales = {name: parameter for name, parameter in
              prepared.named_parameters() if name.endswith('.scale')}
    assert len(scales) == 5  # two weights, the input and two outputs
    assert all(scale.grad is not None for scale in scales.values())
    answers = prepared.eval()(images())
    assert distance(convert_fx(prepared), answers) < 0.05


def test_the_observer_stays_where_convert_takes_it_off():
    """torch.ao deletes ``activation_post_process`` wherever it finds one."""
    quantizer = LSQFakeQuantize(bits=8)
    quantizer.qconfig = None
    _remove_qconfig(quantizer)
    assert quantizer.activation_post_process is quantizer
    assert len(list(quantizer.modules())) == 1


@pytest.mark.parametrize(
    'cls', [LSQPlusFakeQuantize, PACTFakeQuantize, DoReFaFakeQuantize])
def test_in_a_torch_ao_qconfig(cls):
    from torch.ao.quantization import QConfig, prepare_qat

    assert issubclass(cls, FakeQuantizeBase)
    options = {} if cls is DoReFaFakeQuantize else dict(symmetric=True)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    net.qconfig = QConfig(
        activation=LSQFakeQuantize.with_args(bits=4),
        weight=cls.with_args(bits=4, per_channel=True, **options))
    net = prepare_qat(net.train())
    net(torch.randn(4, 3, 8, 8)).sum().backward()
    assert isinstance(net[0].weight_fake_quant, cls)
    assert net[0].weight_fake_quant.step().shape == (6, )
    assert torch.isfinite(net[0].weight.grad).all()
