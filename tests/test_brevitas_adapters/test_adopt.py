"""FPQ on a model of Brevitas's layers, with their user's quantizers."""

import copy

import onnx
import pytest
import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int32Bias,
    ShiftedUint8ActPerTensorFloat,
    SignedBinaryWeightPerTensorConst,
    Uint8ActPerTensorFloat,
)
from torch import nn

from brevitas_adapters import (
    LSQActPerTensor,
    LSQWeightPerChannel,
    adopt,
    float_twin,
)
from fpq_plugin import CSDLoss, Distiller, QuantizedLayer, calibrate
from fpq_plugin.analysis import PlainBatch, noise_gradient_norm
from fpq_plugin.analysis.stability import feature_steps
from fpq_plugin.calibrate import uninitialized
from fpq_plugin.convert import noise_clock
from fpq_plugin.export import export_onnx
from fpq_plugin.param_groups import quantizer_parameters


def net():
    """Activations quantized in layers of their own, and in the last one."""
    return nn.Sequential(
        QuantIdentity(act_quant=Int8ActPerTensorFloat,
                      return_quant_tensor=True),
        QuantConv2d(3, 8, 3, weight_quant=LSQWeightPerChannel,
                    weight_bit_width=4, bias_quant=Int32Bias,
                    return_quant_tensor=True),
        QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=4,
                  return_quant_tensor=True),
        QuantConv2d(8, 8, 3, groups=8, bias=False, weight_bit_width=3,
                    weight_quant=Int8WeightPerChannelFloat),
        nn.BatchNorm2d(8),
        QuantReLU(act_quant=LSQActPerTensor, bit_width=4),
        nn.Flatten(),
        QuantLinear(8 * 16, 5, input_bit_width=5, weight_bit_width=5,
                    input_quant=ShiftedUint8ActPerTensorFloat,
                    weight_quant=Int8WeightPerChannelFloat))


@pytest.fixture
def x():
    return torch.randn(8, 3, 8, 8)


@pytest.fixture
def model(x):
    model = net()
    with torch.no_grad(), calibration_mode(model):
        model(x)
    model.eval()(x)  # LSQ weights take their step from themselves
    return model


def test_the_answers_do_not_change(model, x):
    expected = model(x)
    names = [n for n, _ in model.named_parameters() if 'quant' not in n]
    adopt(model, perturbation=dict(p=1.0))
    assert torch.equal(model(x), expected)
    assert not uninitialized(model)
    assert names == [n for n, _ in model.named_parameters()
                     if 'quant' not in n]
    assert [isinstance(m, QuantizedLayer) for m in model] == [
        False, True, False, True, False, False, False, True]


def test_sfp_is_on_every_activation_in_training_only(model, x):
    adopt(model, perturbation=dict(p=1.0))
    clean = float_of(model[0](x))
    noisy = model.train()[0](x)
    noise = (noisy.value - clean) / noisy.scale
    assert 0.45 < noise.abs().max() <= 0.5 + 1e-3
    noise_clock(model).start_iteration(3)
    drawn = []
    for module in model.modules():
        if hasattr(module, 'perturb'):
            perturb = module.perturb
            module.perturb = lambda x, step, key, f=perturb: drawn.append(
                key) or f(x, step, key)
    model(x)
    assert len(set(drawn)) == len(drawn) == 4
    del drawn[:]
    model.eval()(x)
    assert not drawn


def float_of(tensor):
    return getattr(tensor, 'value', tensor)


def test_it_is_distilled_and_trained(model, x):
    """All scales are found, all parameters have a gradient."""
    teacher = float_twin(model)
    plain = nn.functional.conv2d(x, model[1].weight, model[1].bias)
    torch.testing.assert_close(teacher[1](teacher[0](x)), plain)
    adopt(model, perturbation=dict(p=0.5))
    distiller = Distiller(model, teacher, CSDLoss())
    model.train()
    loss = model(x).square().mean() + distiller.loss()
    assert set(distiller.layer_losses()) == {'1', '3', '7'}
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    # Learned: a weight by LSQ, five scales and a zero point of activations.
    assert len(quantizer_parameters(model)) == 1 + 4 + 1
    distiller.detach()
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(x), model.eval()(x))


def test_it_may_be_calibrated_afterwards(x):
    model = net()
    adopt(model)
    # All but the two weights whose scale is their range, always.
    assert len(uninitialized(model)) == 5
    calibrate(model, [x])
    assert not uninitialized(model)
    assert torch.isfinite(model.eval()(x)).all()


def test_it_is_exported(x, tmp_path):
    model = nn.Sequential(
        QuantIdentity(act_quant=Int8ActPerTensorFloat),
        QuantConv2d(3, 8, 3, weight_quant=LSQWeightPerChannel),
        QuantReLU(act_quant=LSQActPerTensor), nn.Flatten(),
        QuantLinear(8 * 36, 5, weight_quant=Int8WeightPerChannelFloat,
                    input_quant=ShiftedUint8ActPerTensorFloat))
    adopt(model, perturbation=dict(p=1.0))
    calibrate(model, [x])
    path = tmp_path / 'model.onnx'
    report = export_onnx(model.eval(), path, [(x, None)])
    assert report.parity.largest_difference < 1e-5
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count('QuantizeLinear') == 3


def test_what_cannot_be_adopted_is_named():
    with pytest.raises(ValueError, match='no layer of the types QuantConv2d'):
        adopt(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match='perturbation.p: must be a prob'):
        adopt(net(), perturbation=dict(p=2))
    model = nn.Sequential(
        QuantLinear(2, 2, weight_quant=SignedBinaryWeightPerTensorConst))
    with pytest.raises(ValueError, match='0.weight_quant: FPQ takes quanti'):
        adopt(model)
    first = QuantLinear(2, 2)
    model = nn.Sequential(
        first, QuantLinear(2, 2, weight_quant=first.weight_quant))
    with pytest.raises(ValueError, match='0.weight_quant: .* layers share'):
        adopt(model)
    assert type(model[0]) is QuantLinear




def test_noise_on_inputs_that_come_quantized_has_their_step():
    torch.manual_seed(0)
    model = nn.Sequential(
        QuantConv2d(1, 4, 3, weight_bit_width=4,
                    weight_quant=Int8WeightPerChannelFloat,
                    input_quant=ShiftedUint8ActPerTensorFloat),
        QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=4,
                  return_quant_tensor=True),
        nn.Flatten(),
        QuantLinear(4 * 36, 3, weight_bit_width=4,
                    weight_quant=Int8WeightPerChannelFloat))
    adopt(model, perturbation=dict(p=0.1))
    batch = PlainBatch(torch.rand(16, 1, 8, 8), torch.randint(3, (16, )))
    calibrate(model, [batch.inputs])
    model.eval()
    steps = feature_steps(model, {'3': model[3]}, [batch])
    wanted = model[1](model[0](batch.inputs)).scale
    torch.testing.assert_close(steps['3'], wanted.detach())
    found = noise_gradient_norm(model, [batch], 4)
    assert found.feature_loss.value != found.clean_loss


def test_a_perturbation_of_another_kind_changes_nothing():
    model = net()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="'LSQFakeQuantize' is no class of"):
        adopt(model, perturbation=dict(type='LSQFakeQuantize'))
    assert [type(module) for module in model.modules()] == kinds


def test_branches_with_quantizers_are_not_fused():

    class Block(nn.Sequential):

        def switch_to_deploy(self):
            raise AssertionError('called')

    model = Block(QuantConv2d(3, 8, 3, weight_quant=LSQWeightPerChannel))
    adopt(model)
    with pytest.raises(RuntimeError, match='the branches are quantized'):
        model.switch_to_deploy()
