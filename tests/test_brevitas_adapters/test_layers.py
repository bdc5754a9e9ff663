"""Brevitas layers in FPQ: SFP at the proxy, odd inputs, what Brevitas asks."""

import copy
import math

import pytest
import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.nn import QuantConv2d, QuantIdentity
from brevitas.proxy import (
    ActQuantProxyFromInjector,
    WeightQuantProxyFromInjector,
)
from brevitas.quant_tensor import IntQuantTensor
from torch import nn

from brevitas_adapters import BrevitasConv2d, BrevitasLayer
from fpq_plugin import CSDLoss, Distiller, calibrate, convert, to_float
from fpq_plugin.calibrate import uninitialized


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU(),
        nn.Conv2d(8, 4, 1, groups=2), nn.Flatten(), nn.Linear(4 * 16, 5))


def converted(**options):
    model = net()
    convert(model, backend='brevitas', **options)
    return model


@pytest.fixture
def x():
    return torch.randn(4, 3, 8, 8)


def test_layers_and_proxies_are_brevitas_own_types():
    model = converted()
    layer = model[3]
    assert isinstance(layer, QuantConv2d)
    assert isinstance(layer, BrevitasConv2d)
    # Exactly these: Brevitas's export managers look a proxy's type up.
    assert type(layer.weight_quant) is WeightQuantProxyFromInjector
    assert type(layer.input_quant) is ActQuantProxyFromInjector


def test_sfp_is_added_to_the_quant_tensor_in_training_only(x):
    model = converted(perturbation=dict(p=1.0), first_last_bits=None)
    calibrate(model, [x])
    proxy = model[0].input_quant
    clean = proxy.eval()(x)
    noisy = proxy.train()(x)
    assert isinstance(noisy, IntQuantTensor)
    assert torch.equal(noisy.scale, clean.scale)
    noise = (noisy.value - clean.value) / clean.scale
    assert 0.45 < noise.abs().max() <= 0.5 + 1e-3
    assert noise.std().item() == pytest.approx(12**-0.5, rel=0.1)
    assert clean.is_valid
    # Asking the proxy for its scale draws no noise and needs no eval mode.
    proxy.train()
    calls = model[0].perturbation._calls
    proxy.scale()
    assert model[0].perturbation._calls == calls


def test_sfp_is_off_in_brevitas_calibration_mode(x):
    model = converted(perturbation=dict(p=1.0))
    # The float model, in the mode that calibration_mode runs it in.
    expected = to_float(copy.deepcopy(model))(x)
    with torch.no_grad(), calibration_mode(model):
        assert torch.allclose(model(x), expected, atol=1e-5)
    assert not [n for n in uninitialized(model) if 'input' in n]


def test_brevitas_calibration_mode_gives_the_steps_of_ours(x):
    ours = converted().eval()
    theirs = copy.deepcopy(ours)
    calibrate(ours, [x, 2 * x])
    with torch.no_grad(), calibration_mode(theirs):
        theirs(x)
        theirs(2 * x)
    theirs.eval()
    theirs(x)  # weights take their step from themselves
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[key], value, msg=key)


def test_quant_tensor_inputs(x):
    """A QuantTensor counts as its value, with and without an input quant."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    convert(model, backend='brevitas',
            overrides={'1': dict(activation=None)})
    tensor = QuantIdentity(return_quant_tensor=True).eval()(x)
    assert isinstance(tensor, IntQuantTensor)
    calibrate(model, [tensor.value])
    model.eval()
    assert torch.equal(model[0](tensor), model[0](tensor.value))
    hidden = QuantIdentity(return_quant_tensor=True).eval()(model[0](x))
    assert torch.equal(model[1](hidden), model[1](hidden.value))
    assert type(model[1](hidden)) is torch.Tensor
    assert torch.equal(model[0].quantized_input(tensor),
                       model[0].quantized_input(tensor.value))


def test_a_copy_is_independent_of_its_original(x):
    """Brevitas's injectors keep hold of the layer they were made for."""
    model = converted(perturbation=dict(p=1.0))
    calibrate(model, [x])
    model.eval()
    expected = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), expected)
    changed = {k: v + math.log(2) if k.endswith('log_scale') else v
               for k, v in model.state_dict().items()}
    twin.load_state_dict(changed)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)
    torch.testing.assert_close(twin[0].input_quant.scale(),
                               2 * model[0].input_quant.scale())


def test_loading_keeps_the_parameters_that_an_optimizer_holds(x):
    model = converted()
    calibrate(model, [x])
    before = dict(model.named_parameters())
    model.load_state_dict(model.state_dict())
    model(x).sum().backward()
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    for name, parameter in after.items():
        assert parameter is before[name], name
        assert parameter.grad is not None, name


def test_checkpoints_of_the_other_backend_load(x):
    model = net()
    convert(model)
    calibrate(model, [x])
    other = converted()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_to_float_leaves_no_trace(x):
    plain = net()
    model = copy.deepcopy(plain)
    convert(model, backend='brevitas', perturbation=dict(p=1.0))
    calibrate(model, [x])
    to_float(model)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert list(model.state_dict()) == list(plain.state_dict())
    for old, new in zip(plain.modules(), model.modules()):
        assert type(old) is type(new)
        assert set(vars(old)) == set(vars(new))
    convert(model, backend='brevitas')
    assert isinstance(model[0], BrevitasLayer)


def test_autocast_gives_what_the_other_backend_gives(x):
    outs = []
    for backend in ('torch_ao', 'brevitas'):
        torch.manual_seed(0)
        model = net()
        convert(model, backend=backend, perturbation=dict(p=1.0))
        calibrate(model, [x])
        with torch.autocast('cpu', torch.bfloat16):
            outs.append(model(x))
        outs[-1].float().sum().backward()
        outs.append(model[3].input_quantizer.log_scale.grad)
    assert outs[0].dtype is outs[2].dtype is torch.bfloat16
    assert torch.equal(outs[0], outs[2])
    torch.testing.assert_close(outs[1], outs[3])


def test_distillation_is_the_same_code(x):
    teacher, model = net(), converted()
    model.load_state_dict(teacher.state_dict(), strict=False)
    calibrate(model, [x])
    distiller = Distiller(model, teacher, CSDLoss())
    model(x)
    assert set(distiller.layer_losses()) == {'0', '3', '5', '7'}
    distiller.loss().backward()
    assert model[3].input_quantizer.log_scale.grad.abs() > 0


def test_no_parameter_is_left_without_gradient(x):
    """What DDP needs, without find_unused_parameters."""
    model = converted(perturbation=dict(p=0.5))
    calibrate(model, [x])
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
