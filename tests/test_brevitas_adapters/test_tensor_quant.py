"""LSQ on Brevitas: against the other backend and against float64."""

import copy

import pytest
import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.nn import QuantConv2d, QuantConvTranspose2d, QuantLinear
from hypothesis import given
from hypothesis import strategies as st
from reference import fake_quantize_64
from torch import nn

from brevitas_adapters import LSQActPerTensor, LSQWeightPerChannel
from fpq_plugin import calibrate, convert


@st.composite
def cases(draw):
    """(options of convert, layer, input): bits, signs, zero points, shapes."""
    weight = dict(bits=draw(st.integers(2, 8)))
    activation = dict(bits=draw(st.integers(2, 8)),
                      signed=draw(st.booleans()),
                      symmetric=draw(st.booleans()))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    groups = draw(st.sampled_from([1, 2, 4]))
    bias = draw(st.booleans())
    if draw(st.booleans()):
        layer = nn.Conv2d(4, 4 * draw(st.integers(1, 2)),
                          draw(st.integers(1, 3)), padding=1, groups=groups,
                          bias=bias)
        x = torch.randn(draw(st.integers(1, 3)), 4, 5, 4)
    else:
        layer = nn.Linear(4, draw(st.integers(1, 5)), bias=bias)
        x = torch.randn(*draw(st.sampled_from([(3, 4), (2, 3, 4), (1, 4)])))
    offset = draw(st.sampled_from([-3.0, -0.5, 0.0, 0.5, 3.0]))
    return dict(weight=weight, activation=activation,
                first_last_bits=None), layer, x + offset


def run(backend, options, layer, x):
    """Output and the gradients of input and all parameters."""
    model = nn.Sequential(copy.deepcopy(layer))
    convert(model, backend=backend, **options)
    # Half of the data calibrates, so that some values are clipped.
    calibrate(model, [x / 2])
    x = x.clone().requires_grad_()
    out = model(x)
    upstream = torch.linspace(-1, 2, out.numel()).view_as(out)
    names, parameters = zip(*model.named_parameters())
    grads = torch.autograd.grad(out, (x, *parameters), upstream)
    return model, out, dict(zip(('input', *names), grads))


@given(cases())
def test_outputs_and_gradients_are_the_other_backends(case):
    model, out, grads = run('brevitas', *case)
    other, other_out, other_grads = run('torch_ao', *case)
    torch.testing.assert_close(out, other_out, rtol=1e-6, atol=1e-6)
    assert grads.keys() == other_grads.keys()
    assert sum('quantizer.log_scale' in name for name in grads) == 2
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, other_grads[name], rtol=1e-6, atol=1e-6, msg=name)
    assert list(model.state_dict()) == list(other.state_dict())


@given(cases())
def test_quant_tensors_are_equation_3_in_float64(case):
    """Value, scale, zero point, bits and integers that the proxies return."""
    options, _, x = case
    model, _, _ = run('brevitas', *case)
    layer = model.eval()[0]
    for proxy, given_x, part in ((layer.weight_quant, layer.weight, 'weight'),
                                 (layer.input_quant, x, 'activation')):
        tensor = proxy(given_x)
        bits = options[part]['bits']
        signed = part == 'weight' or options[part]['signed']
        low = -2**(bits - 1) if signed else 0
        reference = fake_quantize_64(
            given_x.double(), tensor.scale.double(),
            tensor.zero_point.double(), low, low + 2**bits - 1)
        off = (tensor.value.double() - reference).abs() / tensor.scale
        # A tie of x / s may fall either way in float32.
        ratio = given_x.double() / tensor.scale.double()
        tie = (ratio - ratio.floor() - 0.5).abs() < 1e-4
        assert (off[~tie] < 1e-3).all()
        assert (off <= 1 + 1e-3).all()
        assert tensor.bit_width.item() == bits
        assert tensor.signed == signed
        assert tensor.is_valid
        integers = tensor.int().double()
        assert low <= integers.min() <= integers.max() <= low + 2**bits - 1


@pytest.mark.parametrize('make', [
    lambda **q: QuantConv2d(4, 6, 3, groups=2, bias=False, **q),
    lambda **q: QuantConvTranspose2d(4, 6, 3, **q),
    lambda **q: QuantLinear(5, 6, **q),
])
def test_on_brevitas_own_layers(make):
    """Their users' way: calibration_mode, training, state_dict."""
    def layer():
        return make(weight_quant=LSQWeightPerChannel, weight_bit_width=3,
                    input_quant=LSQActPerTensor, input_bit_width=5)

    model, x = layer(), torch.randn(2, 4, 5, 5)
    with torch.no_grad(), calibration_mode(model):
        model(x)
    model.train()
    low, high = x.min(), x.max()
    torch.testing.assert_close(model.input_quant.scale(), (high - low) / 31)
    assert model.input_quant.zero_point().item() == round(
        (31 - high / ((high - low) / 31)).item())
    model(x).square().mean().backward()
    assert len(list(model.parameters())) == 2 + 1 + (model.bias is not None)
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    weight = model.quant_weight()
    scale = weight.scale.flatten()
    assert scale.numel() == 6
    assert weight.int().unique().numel() <= 8
    other = layer()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_an_act_quantizer_starts_from_the_first_training_batch():
    layer = QuantLinear(5, 6, input_quant=LSQActPerTensor,
                        weight_quant=LSQWeightPerChannel)
    x = torch.randn(3, 5)
    with pytest.raises(RuntimeError, match='no step yet'):
        layer.eval()(x)
    with pytest.raises(RuntimeError, match='no step yet'):
        layer.train().input_quant.scale()
    layer.train()(x)
    scale = layer.input_quant.scale()
    torch.testing.assert_close(scale, (x.max() - x.min()) / 15)


@pytest.mark.parametrize('bits', [1, 9])
def test_other_bit_widths_are_refused(bits):
    with pytest.raises(ValueError, match='bits must be an integer of 2 to 8'):
        QuantLinear(5, 6, weight_quant=LSQWeightPerChannel,
                    weight_bit_width=bits)
