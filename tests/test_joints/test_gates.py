"""Activations that multiply their input with a gate."""

import copy
import io

import mmcv.cnn.bricks as bricks
import pytest
import torch
from torch import nn

from fpq_plugin import add_joints, calibrate, convert, param_groups, to_float
from fpq_plugin.calibrate import uninitialized
from fpq_plugin.joints import attach_joints, joints_of
from fpq_plugin.joints.gates import gate_kind
from fpq_plugin.joints.placing import Joint
from fpq_plugin.quantizers import full_precision, named_quantizers

SOFT = [nn.SiLU(), nn.SiLU(inplace=True), bricks.Swish()]
HARD = [nn.Hardswish(), nn.Hardswish(inplace=True), bricks.HSwish()]


def names(act):
    return f'{type(act).__module__.partition(".")[0]}.{type(act).__name__}'


@pytest.fixture(params=SOFT + HARD, ids=names)
def act(request):
    return copy.deepcopy(request.param)


def net(act):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), act, nn.Conv2d(4, 4, 3))


def joined(act, bits=4):
    torch.manual_seed(0)
    model, images = net(act), 4 * torch.randn(8, 2, 8, 8)
    convert(model, weight=dict(bits=bits), activation=dict(bits=bits))
    table = add_joints(model, images)
    calibrate(model, [images])
    return model, images, table


def gated(act):
    """The activation alone, with its gate quantized."""
    model = nn.Sequential(act)
    attach_joints(model, [Joint('0', 'gate', ())], None)
    return model[0]


def gate_of(act, x):
    """The gate in float64 and one over its step."""
    if 'ard' in type(act).__name__ or 'HS' in type(act).__name__:
        return ((x + 3) / 6).clamp(0, 1), 255
    return 1 / (1 + torch.exp(-x)), 256


def test_values(act):
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    gate, levels = gate_of(act, x)
    code = (gate * levels).round().clamp(0, 255)
    before = x.clone()
    torch.testing.assert_close(gated(act)(x), x * code / levels,
                               rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before)


def test_the_gradient_goes_straight_through(act):
    x = torch.linspace(-5.9, 5.9, 500, dtype=torch.float64,
                       requires_grad=True)
    gate, levels = gate_of(act, x)
    slope, = torch.autograd.grad(gate.sum(), x)
    gated(act)(x).sum().backward()
    rounded = (gate.detach() * levels).round().clamp(0, 255) / levels
    torch.testing.assert_close(x.grad, rounded + x.detach() * slope,
                               rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(act, dtype):
    assert gated(act)(torch.randn(5, dtype=dtype)).dtype is dtype


def test_a_model_gets_them(act):
    kind, why = type(act), gate_kind(act)
    model, images, table = joined(act)
    assert [(row.name, row.why) for row in table] == [
        ('1.output', why), ('2.gate', 'gate')]
    gate = model[2].gate_quantizer
    assert named_quantizers(model)['2.gate_quantizer'] is gate
    assert isinstance(model[2], kind)
    # x and its gate are on their grids.
    seen = []
    model[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(images)
    codes = seen[0] / model[1].output_quantizer.step()
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)


def test_it_is_ready_and_learns_nothing(act):
    torch.manual_seed(0)
    model, images = net(act), torch.randn(8, 2, 8, 8)
    convert(model)
    add_joints(model, images)
    assert '2.gate_quantizer' not in uninitialized(model)
    before = copy.deepcopy(model[2].gate_quantizer.state_dict())
    calibrate(model, [images])
    optimizer = torch.optim.SGD(param_groups(model, lr=0.1))
    model(images).square().sum().backward()
    optimizer.step()
    assert not list(model[2].gate_quantizer.parameters())
    after = model[2].gate_quantizer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key])
               for key, value in before.items())


def test_state_copy_and_pickle(act):
    fresh = joined(copy.deepcopy(act))[0]
    model, images, _ = joined(act)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.1)
    fresh.load_state_dict(model.eval().state_dict())
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    with torch.no_grad():
        wanted = model(images)
        for other in (fresh.eval(), copy.deepcopy(model),
                      torch.load(stream, weights_only=False)):
            assert torch.equal(other(images), wanted)
            assert joints_of(other) == joints_of(model)
            assert other[2].gate_quantizer.has_step()


def test_another_gate_s_state_is_refused():
    state = joined(nn.SiLU())[0].state_dict()
    with pytest.raises(RuntimeError, match='levels=256 in the state'):
        joined(nn.Hardswish())[0].load_state_dict(state)


def test_to_float_undoes_it(act):
    kind = type(act)
    model, images, _ = joined(act)
    plain = copy.deepcopy(model)
    to_float(plain)
    assert type(plain[2]) is kind
    assert not named_quantizers(plain)
    assert not plain[2]._modules.keys() - {'act'}
    with torch.no_grad(), full_precision(model):
        torch.testing.assert_close(plain.eval()(images),
                                   model.eval()(images))


class Reads(nn.Module):
    """Calls one activation on two tensors; the second result is last."""

    def __init__(self, act, last):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(2, 2, 1) for _ in range(3))
        self.act, self.last = act, last

    def forward(self, x):
        return self.last(self.act(self.c(self.b(self.act(self.a(x))))))


@pytest.mark.parametrize(('last', 'found'), [
    (nn.Conv2d(2, 2, 1), True), (nn.Identity(), False), (nn.GELU(), False)])
def test_only_if_all_of_its_results_end_quantized(act, last, found):
    model = Reads(act, copy.deepcopy(last))
    images = torch.randn(2, 2, 4, 4)
    convert(model)
    add_joints(model, images)
    assert ('gate' in [joint.side for joint in joints_of(model)]) == found


def test_not_for_every_engine():
    model, images = net(nn.SiLU()), torch.randn(2, 2, 8, 8)
    convert(model)
    add_joints(model, images, target='openvino')
    assert not [j for j in joints_of(model) if j.side == 'gate']
