"""Joints never change what a model computes: they are left out instead."""

import copy

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import nn

from fpq_plugin import Recipe, add_joints, calibrate, convert
from fpq_plugin.calibrate import run_batch
from fpq_plugin.export import export_onnx
from fpq_plugin.joints import joints_of

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
W8 = dict(weight=dict(bits=8), activation=dict(bits=8))


class Net(nn.Module):

    def __init__(self, run, **modules):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.d, self.e = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


class Changing(nn.Module):
    """Changes its argument in place, and reads the outcome."""

    def __init__(self, act):
        super().__init__()
        self.act, self.conv = act, nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(self.act(x))


def dropped(net, x):
    y = net.a(x)
    net.act(y)
    return net.d(y)


def aliased(net, x):
    y = net.a(x)
    return net.d(net.act(y)) + net.e(y)


def changed_inside(net, x):
    y = net.a(x) + net.b(x)
    z = net.act(y)
    return net.d(z) + net.e(y)


def through_identity(net, x):
    y = net.b(x).relu() + 1
    t = net.act(y)
    t += net.a(x)
    return net.d(t) + net.e(y)


CASES = {
    'dropped': Net(dropped, act=nn.SiLU(inplace=True)),
    'aliased': Net(aliased, act=nn.Hardswish(inplace=True)),
    'inside': Net(changed_inside, act=Changing(nn.LeakyReLU(inplace=True))),
    'swish inside': Net(changed_inside,
                        act=Changing(nn.Hardswish(inplace=True))),
    'identity': Net(through_identity, act=nn.Identity()),
}


@pytest.mark.parametrize('case', CASES)
def test_tensors_changed_in_place_under_another_name(case):
    plain = copy.deepcopy(CASES[case]).eval()
    model = copy.deepcopy(plain)
    with torch.no_grad():
        wanted = plain(IMAGES)
    convert(model, **W8, first_last_bits=None)
    recipe = Recipe(target='onnxruntime', activation=None)
    _, placing = recipe.find_joints(model, lambda: run_batch(model, IMAGES))
    calibrate(model, [IMAGES])
    with torch.no_grad():
        error = (model.eval()(IMAGES) - wanted).abs().mean()
    assert error < 0.03 * wanted.abs().mean()
    if case != 'inside':
        assert any('is changed in place under another name' in text
                   for text in placing.left)


def test_a_model_that_draws_is_no_other_one():
    """Each forward that is compared draws the same."""

    def run(net, x):
        return net.d(net.a(x) + net.b(x) + torch.rand(1)) + net.e(
            net.a(x) + net.b(x))

    model = Net(run)
    convert(model, **W8)
    state = torch.get_rng_state()
    add_joints(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_that_was_replaced_is_named():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 4, 1))
    convert(model, **W8)
    add_joints(model, IMAGES)
    calibrate(model, [IMAGES])
    other = revert_sync_batchnorm(
        nn.SyncBatchNorm.convert_sync_batchnorm(model)).eval()
    with pytest.raises(ValueError, match='1 has the output_quantizer of a '
                       'joint and not its hook'):
        export_onnx(other, 'model.onnx', [(IMAGES, None)])
    with pytest.raises(ValueError, match='replaced after add_joints'):
        calibrate(other, [IMAGES])


def test_in_inference_mode():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 1))
    convert(model, **W8)
    with torch.inference_mode():
        table = add_joints(model, IMAGES)
    assert [row.name for row in table] == ['0.output']


@pytest.mark.parametrize('part', ['weight', 'activation'])
def test_float_layers_end_in_float(part):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 1))
    convert(model, **{**W8, part: None})
    assert add_joints(model, IMAGES) == []
    assert joints_of(model) == []


def test_joints_without_a_target_are_refused():
    with pytest.raises(ValueError, match='fpq.joints: has a meaning with '
                       'fpq.target alone'):
        Recipe(joints=dict(bits=4))


@pytest.mark.parametrize(('options', 'key'), [
    (dict(bits='w8a8'), 'fpq.activation'),
    (dict(bits='w4a4'), 'fpq.first_last_bits'),
    (dict(bits='w4a4', first_last_bits=None, joints=dict(
        symmetric=False)), 'fpq.joints'),
    (dict(bits='w4a4', first_last_bits=None,
          overrides={'*fc*': dict(activation=dict(bits=8))}),
     r'fpq.overrides\[')])
def test_an_engine_without_zero_points_refuses_eight_bits_with_them(
        options, key):
    with pytest.raises(ValueError, match=f'{key}.*: TensorRT takes 8-bit '
                       'integers around 0 alone; set symmetric=True'):
        Recipe(target='tensorrt', **options)


def test_fewer_bits_fit_an_engine_without_zero_points(tmp_path):
    Recipe(target='tensorrt', bits='w4a4', first_last_bits=7)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    convert(model, activation=dict(bits=4), first_last_bits=None)
    add_joints(model, IMAGES, 'tensorrt')
    calibrate(model, [IMAGES])
    report = export_onnx(model, tmp_path / 'model.onnx', [(IMAGES, None)],
                         target='tensorrt')
    assert report.parity.equal() == 100
