"""Biases as integer kernels add them, against a formula in float64."""

import copy
import io

import pytest
import torch
from torch import nn

from fpq_plugin import add_joints, calibrate, convert, to_float
from fpq_plugin.export import export_onnx
from fpq_plugin.joints import joints_of, rounded_biases
from fpq_plugin.joints.biases import (
    can_be_rounded,
    round_bias_of,
    rounded_layer,
    unround_bias,
)


def model_of(bits, bias=True, norm=True, target='onnxruntime'):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, bias=bias), nn.ReLU(),
              nn.Conv2d(6, 4, 3, bias=bias), nn.ReLU(), nn.Flatten(),
              nn.Linear(64, 5)]
    if norm:
        layers.insert(1, nn.BatchNorm2d(6))
    model, images = nn.Sequential(*layers), torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        for _ in range(5):
            model(images)
        if norm:
            model[1].weight[:3] = torch.tensor([-1.3, 0.0, 0.4])
            model[1].bias.uniform_(-1, 1)
    convert(model, weight=dict(bits=bits), activation=dict(bits=bits),
            first_last_bits=None)
    if target is not None:
        add_joints(model, images, target)
    calibrate(model, [images])
    return model.eval(), images


def rounded_64(layer, norm=None):
    """The bias that a kernel adds, a channel at a time."""
    step_x = float(layer.input_quantizer.step())
    fill = 2**max(7 - layer.weight_quantizer.num_bits, 0)
    found = []
    for c, step_w in enumerate(layer.weight_quantizer.step().double()):
        bias = float(layer.bias[c]) if layer.bias is not None else 0.0
        step = float(step_w) * step_x / fill
        if norm is not None:
            gain = float(norm.weight[c]) / (
                float(norm.running_var[c]) + norm.eps)**0.5
            bias = (bias - float(norm.running_mean[c])) * gain + float(
                norm.bias[c])
            step *= abs(gain) or 1
        found.append(round(bias / step) * step)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize('bits', [8, 4, 2])
@pytest.mark.parametrize(('bias', 'norm'), [
    (True, True), (False, True), (True, False)])
def test_a_bias_is_rounded_to_steps_of_input_times_weight(bits, bias, norm):
    model, images = model_of(bits, bias, norm)
    zero = torch.zeros(1, 3, 5, 5)
    first = model[:2] if norm else model[:1]
    with torch.no_grad():
        found = first(zero)[0, :, 0, 0]
    if first[-1]._modules.get('output_quantizer') is None:
        torch.testing.assert_close(
            found.double(), rounded_64(model[0], model[1] if norm else None),
            rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        model[-1](torch.zeros(1, 64))[0].detach().double(),
        rounded_64(model[-1]), rtol=1e-5, atol=1e-6)


def test_training_and_full_precision_have_the_float_bias():
    model, images = model_of(4)
    plain, _ = model_of(4, target=None)
    model.train()
    plain.train()
    torch.testing.assert_close(model(images), plain(images))
    convert_off = [q for q in model.modules()
                   if hasattr(q, 'enable_fake_quant')]
    for quantizer in convert_off:
        quantizer.enable_fake_quant(False)
    float_model = to_float(copy.deepcopy(plain)).eval()
    model.eval()
    torch.testing.assert_close(model(images), float_model(images))


@pytest.mark.parametrize('bits', [8, 4, 2])
def test_the_file_has_these_biases(bits, tmp_path):
    """Its answers are the model's, up to float32's rounding."""
    model, images = model_of(bits)
    before = copy.deepcopy(model.state_dict())
    report = export_onnx(model, tmp_path / 'model.onnx', [(images, None)],
                         target='onnxruntime')
    assert all(not reason for _, reason in report.biases)
    # A value between two codes may fall to the other one.
    assert report.parity.mean_difference < 1e-4 * report.parity.spread
    after = model.state_dict()
    assert all(torch.equal(value, after[key])
               for key, value in before.items())


def test_parameters_are_put_back_after_an_error():
    model, images = model_of(8)
    wanted = model(images)
    bias = model[1].bias.detach().clone()

    def fail():
        with rounded_biases(model):
            assert not torch.equal(model[1].bias, bias)
            torch.testing.assert_close(model(images), wanted)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model[1].bias, bias)
    assert torch.equal(model(images), wanted)


def test_found_again_copied_pickled_and_taken_out():
    model, images = model_of(8)
    found = [j for j in joints_of(model) if j.side == 'bias']
    assert [(j.module, j.layers) for j in found] == [
        ('1', ('0', )), ('3', ('3', )), ('6', ('6', ))]
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model),
                  torch.load(stream, weights_only=False)):
        assert torch.equal(other(images), model(images))
        assert joints_of(other) == joints_of(model)
        assert rounded_layer(other[1]) is other[0]
    other = to_float(copy.deepcopy(model))
    assert joints_of(other) == []
    assert not any(m._forward_hooks for m in other.modules())


def test_engines_with_float_biases_need_none():
    model, _ = model_of(8, target='openvino')
    assert joints_of(model) == []


def test_nothing_is_left_of_a_bias_that_is_not_rounded_any_more():
    layer, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    for module in (layer, norm):
        before = set(vars(module))
        round_bias_of(module, layer)
        assert rounded_layer(module) is layer
        unround_bias(module)
        assert rounded_layer(module) is None
        assert set(vars(module)) == before


def test_one_sample_without_a_batch_gets_the_same_biases():
    model, images = model_of(8, norm=False)
    convolutions = model[:4]
    with torch.no_grad():
        torch.testing.assert_close(convolutions(images[0]),
                                   convolutions(images)[0])


def test_torch_fx_traces_them():
    model, images = model_of(8)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for number in (16, 3):
            wanted = model(images[:number])
            # Values at the edge of a step may be rounded the other way.
            assert (traced(images[:number]) - wanted).abs().max() < (
                0.01 * wanted.std())


@pytest.mark.parametrize(('norm', 'fits'), [
    (nn.BatchNorm2d(6), True),
    (nn.BatchNorm2d(6, track_running_stats=False), False),
    (nn.BatchNorm2d(6, affine=False), False),
    (nn.GroupNorm(2, 6), False),
])
def test_biases_that_norms_make_of_fixed_numbers_can_be_rounded(norm, fits):
    model, _ = model_of(8)
    assert can_be_rounded(norm, model[0]) is fits
    assert can_be_rounded(model[0], model[0])
