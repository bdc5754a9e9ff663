"""What Brevitas's quantizers collect: searched, running, kept in the state."""

import pytest
import torch
from brevitas import quant
from brevitas.graph.calibrate import calibration_mode
from brevitas.nn import QuantLinear
from torch import nn

from brevitas_adapters.backend import BREVITAS
from fpq_plugin import calibrate, convert

# These ask for a range that has no default.
NEEDING_LET = {'Int8ActPerTensorFloatMinMaxInit',
               'Uint8ActPerTensorFloatMaxInit',
               'Uint8ActPerTensorFixedPointMaxInit'}
ACTIVATIONS = sorted(
    name for name in BREVITAS.activation.module_dict
    if hasattr(quant, name) and name not in NEEDING_LET)
WEIGHTS = sorted(name for name in BREVITAS.weight.module_dict
                 if hasattr(quant, name))


def inputs(name):
    """(N, C, L) and, for the statistics of images, (N, C, H, W)."""
    shape = (8, 3, 4, 4) if name.endswith('2d') else (8, 3, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def converted(**kinds):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    convert(model, backend='brevitas', first_last_bits=None,
            **{part: dict(type=kind, bits=4) if kind else None
               for part, kind in kinds.items()})
    return model


@pytest.mark.parametrize('name', WEIGHTS)
def test_each_weight_quantizer_is_brevitas_own(name):
    model = converted(weight=name, activation=None)
    calibrate(model, [torch.randn(3, 4)])
    plain = QuantLinear(4, 6, weight_quant=getattr(quant, name),
                        weight_bit_width=4)
    with torch.no_grad():
        plain.weight.copy_(model[0].weight)
        plain.bias.copy_(model[0].bias)
    plain.weight_quant.init_tensor_quant()  # of this weight
    x = torch.randn(5, 4)
    plain.train()(x)
    torch.testing.assert_close(model.eval()[0](x), plain.eval()(x))


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_each_activation_quantizer_is_brevitas_own(name):
    model = converted(weight=None, activation=name)
    x = inputs(name)
    calibrate(model, [x, 2 * x])
    plain = QuantLinear(4, 6, weight_quant=None,
                        input_quant=getattr(quant, name), input_bit_width=4)
    with torch.no_grad():
        plain.weight.copy_(model[0].weight)
        plain.bias.copy_(model[0].bias)
        with calibration_mode(plain):
            plain(x)
            plain(2 * x)
    torch.testing.assert_close(model.eval()[0](x), plain.eval()(x))


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_a_state_has_all_statistics(name):
    """Also those that training goes on to collect, and their number."""
    model, twin = (converted(weight='Int8WeightPerTensorFloat',
                             activation=name) for _ in range(2))
    x = inputs(name)
    calibrate(model, [x])
    for factor in (2, 3):
        model.train()(factor * x)
    twin.load_state_dict(model.state_dict())
    for _ in range(2):
        assert torch.equal(model.eval()(x), twin.eval()(x))
        assert torch.equal(model.train()(4 * x), twin.train()(4 * x))


def test_running_statistics_stay_one_tensor_on_another_device_or_type():
    name = 'Int8ActPerTensorFloatBatchQuant1d'
    model = converted(weight=None, activation=name)
    calibrate(model, [inputs(name)])
    model.double().float()
    key = '0.input_quantizer.scaling_impl_runtime_stats_running_stats'
    before = model.state_dict()[key].clone()
    model.train()(5 * inputs(name))
    assert not torch.equal(model.state_dict()[key], before)
