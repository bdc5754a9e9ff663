"""Batch norms and biases cost no accuracy."""

import onnx
import pytest
import torch
from exported_models import (
    ZERO_POINT,
    answers,
    assert_same,
    batch_norm,
    quantized,
    weights_of,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin import Recipe, add_joints, calibrate, convert
from fpq_plugin.export import export_onnx

BITS = st.integers(2, 8)


@given(BITS, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_batch_norm_is_folded_where_exact(tmp_path_factory, bits, bias,
                                          per_channel, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, 8, 8, generator=generator)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias),
                          batch_norm(6, generator))
    quantized(model, x, weight=dict(bits=bits, per_channel=per_channel),
              first_last_bits=None)
    path = tmp_path_factory.mktemp('norm') / 'model.onnx'
    export_onnx(model, path, [(x, None)])
    with torch.no_grad():
        assert_same(answers(path, x), model(x))
    trained = torch.round(
        model[0].weight_quantizer(model[0].weight.detach()) /
        model[0].weight_quantizer.step().view(-1, 1, 1, 1))
    flipped = trained[model[1].weight < 0]
    lowest = -128 if bits > 4 else -8
    fits = not (flipped == lowest).any()
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert ('BatchNormalization' in nodes) != fits
    integers = torch.tensor(weights_of(path)[0][0])
    integers -= ZERO_POINT if bits == 8 else 0
    signs = torch.sign(model[1].weight).view(-1, 1, 1, 1)
    assert torch.equal(integers, (trained * signs if fits else
                                  trained).long())


def with_batch_norm():
    """A convolution with a batch norm, two layers, and images."""
    torch.manual_seed(0)
    x = torch.randn(40, 3, 8, 8)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(216, 4)).eval(), x


@pytest.mark.parametrize(('bits', 'gain', 'share'), [
    (4, -1.5, 0.2), (4, 1e-42, 0.2), (8, -1.5, 0.2), (8, 1e-42, 0.2),
    (8, -1.5, 1.0)])
def test_a_batch_norm_costs_no_integer_kernel(bits, gain, share, tmp_path):
    """Of a residual branch: its gains start at 0, and get any sign.

    So -128 becomes 128, which int8 has not, and a step can be none at all.
    Where -127 in its place costs accuracy, the batch norm stays.
    """
    model, x = with_batch_norm()
    with torch.no_grad():
        model[0].weight[:, 0, 0, 0] = -share  # the lowest of all
        model[1].weight[:3] = gain
        model[1].bias[3:] = 0.1
    weight = dict(type='LSQFakeQuantize', bits=bits)
    convert(model, weight=weight, first_last_bits=None)
    add_joints(model, x)
    calibrate(model, [x])
    with torch.no_grad():
        model[0].weight_quantizer.scale.mul_(0.98)  # -128 for sure
        lowest = -128 if bits == 8 else -8
        integers = model[0].weight_quantizer(model[0].weight) / (
            model[0].weight_quantizer.step().view(-1, 1, 1, 1))
        assert (integers.round().flatten(1).min(1).values == lowest).all()
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], target='onnxruntime')
    stays, unfit = share == 1, gain < -1 and bits == 8
    assert ('BatchNormalization' in [
        node.op_type for node in onnx.load(path).graph.node]) == stays
    assert report.kernels.on_integers() == 3 - stays
    assert report.moved_weights == 3 * (unfit and not stays)
    assert ('its batch norm cannot be multiplied into its weights (1: 0)'
            in str(report)) == stays
    # Biases are as they were asked for, and cost none.
    assert report.bias_line() == (
        f'integer biases: {3 - stays} of {3 - stays} layers')
    with torch.no_grad():
        expected = model(x)
    spread = expected.std()
    assert (answers(path, x) - expected).abs().mean() < 0.02 * spread
    # Without a target nothing is moved.
    report = export_onnx(model, path, [(x, None)])
    assert report.moved_weights == 0
    assert ('BatchNormalization' in [
        node.op_type for node in onnx.load(path).graph.node]) == (gain < -1)


@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('weight', [dict(signed=False),
                                    dict(symmetric=False)])
def test_a_negative_gain_does_not_go_into_unsigned_weights(bits, weight,
                                                           tmp_path):
    torch.manual_seed(0)
    x = torch.randn(40, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).eval()
    with torch.no_grad():
        model[0].weight.abs_()  # so that zero points are 0
        model[1].weight[0] = -0.7
    quantized(model, x, weight=dict(bits=bits, **weight),
              first_last_bits=None)
    assert not model[0].weight_quantizer.zero_point.any()
    path = tmp_path / 'model.onnx'
    export_onnx(model, path, [(x, None)])
    with torch.no_grad():
        assert_same(answers(path, x), model(x))


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_weights_trained_for_an_engine_take_any_batch_norm(backend, tmp_path):
    model, x = with_batch_norm()
    with torch.no_grad():
        model[0].weight[:, 0, 0, 0] = -1.
        model[1].weight.fill_(-1.5)
    Recipe(bits='w8a8', backend=backend, target='onnxruntime').convert(model)
    add_joints(model, x)
    calibrate(model, [x])
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], target='onnxruntime')
    assert report.moved_weights == 0
    assert report.kernels.on_integers() == 3
    with torch.no_grad():
        assert_same(answers(path, x), model(x))


def test_biases_are_float_where_integers_cost_accuracy(tmp_path):
    """Two classes, a bias apart that integers of 8-bit kernels lack."""
    torch.manual_seed(1)
    # Nearly the same inputs, at the edge between the classes.
    x = torch.rand(64, 4, 4) + 0.01 * torch.rand(400, 64, 4, 4)
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 2, 4), nn.Flatten())
    lsq = dict(type='LSQFakeQuantize', bits=8)
    quantized(model, x, weight=lsq, activation=lsq)
    with torch.no_grad():
        difference = model(x) @ torch.tensor([1., -1.])
        model[2].bias[0] -= difference.median()
        labels = model(x).argmax(1)
    path = tmp_path / 'model.onnx'

    def exported(labels, **options):
        report = export_onnx(model, path, [(x, labels)], **options)
        types = {t.data_type for t in onnx.load(path).graph.initializer}
        return report, onnx.TensorProto.INT32 in types

    report, integers = exported(labels)
    assert not integers
    assert report.parity.top1_exported > 99.7
    assert 'integer biases: 0 of 2 layers, because with more of them top-1 ' \
        'is 0.50 points lower' in str(report)
    assert report.lost_kernels == 1
    assert '; integer kernels that this costs: 1; float because' in str(report)
    assert dict(report.biases) == {
        '0': 'integers cost accuracy',
        '2': 'the output is not quantized again'}
    # Two of 400 classes alone cost no kernels.
    for known, options in ((None, {}), (labels, dict(tolerance=1))):
        report, integers = exported(known, **options)
        assert integers
        assert report.parity.other_class == 2
        assert 'integer biases: 1 of 2 layers; float because the output is ' \
            'not quantized again (1)' in str(report)


def test_a_coarse_bias_before_a_pooling_is_added_in_float(tmp_path):
    """onnxruntime would round it in steps that the next layer can see."""
    torch.manual_seed(0)
    x = torch.rand(40, 8, 12, 12)
    model = nn.Sequential(
        nn.Conv2d(8, 8, 1, groups=8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5))
    with torch.no_grad():
        # Next to nothing is left of the range of 1 that the input has.
        model[0].weight.fill_(1)
        model[0].bias.copy_(-0.9 - 0.01 * torch.rand(8))
    quantized(model, x, weight=dict(bits=8), activation=dict(bits=8),
              first_last_bits=None)
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, None)])
    assert report.parity.mean_difference < 1e-4 * report.parity.spread


def test_biases_are_integers_at_any_bits_where_the_target_says_so(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(200, 8, 6, 6)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 5))
    quantized(model, x, weight=dict(bits=4), activation=dict(bits=4),
              first_last_bits=None)
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, None)],
                         target='onnxruntime')
    # That of the last layer, too, whose output is float.
    assert dict(report.biases) == {'0': '', '2': '', '5': ''}
    assert report.kernels.on_integers() == 3
    assert report.parity.mean_difference < 1e-2 * report.parity.spread
    standard = export_onnx(model, tmp_path / 'model.onnx', [(x, None)])
    assert all(reason for _, reason in standard.biases)


class TwoLevels(nn.Module):
    """One convolution for two levels, which have norms of their own."""

    def __init__(self, norms):
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5)])
        self.shared, self.norms = nn.Conv2d(4, 4, 3), nn.ModuleList(norms)
        self.ends = nn.ModuleList([nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)])

    def forward(self, x):
        maps = [norm(self.shared(level(x))).relu()
                for level, norm in zip(self.levels, self.norms)]
        return [end(one) for end, one in zip(self.ends, maps)]


@pytest.mark.parametrize(('target', 'weights'), [
    ('onnxruntime', 6), (None, 5)])
def test_a_shared_weight_takes_each_levels_batch_norm(target, weights,
                                                      tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, 9, 9, generator=generator)
    model = TwoLevels([batch_norm(4, generator) for _ in range(2)])
    convert(model, target=target, weight=dict(bits=8),
            activation=dict(bits=8))
    if target:
        add_joints(model, x, target=target)
    calibrate(model, [x])
    path = tmp_path / 'model.onnx'
    report = export_onnx(model.eval(), path, [(x, None)], target=target)
    stored, _ = weights_of(path)
    assert sum(weight.ndim == 4 for weight in stored) == weights
    names = [node.op_type for node in onnx.load(path).graph.node]
    assert names.count('BatchNormalization') == (0 if target else 2)
    if target:
        assert report.kernels.on_integers() == 4  # all but the ends


@pytest.mark.parametrize(('target', 'added'), [
    ('onnxruntime', 0), (None, 1), ('openvino', 0)])
def test_where_float_biases_are_added(target, added, tmp_path):
    """Beside the layer where an engine would round them, else inside."""
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    with torch.no_grad():
        model[0].bias.copy_(1e4 * torch.arange(6))  # no int32 holds it
    four = dict(bits=2)
    quantized(model, x, weight=four, activation=four, first_last_bits=None)
    path = tmp_path / 'model.onnx'
    export_onnx(model, path, [(x, None)], target=target, tolerance=1)
    found = [node.op_type for node in onnx.load(path).graph.node]
    assert found.count('Add') == added


def test_a_bias_that_fits_no_int32_is_float(tmp_path):
    x = torch.rand(40, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    quantized(model, x, weight=dict(bits=8, per_channel=False),
              activation=dict(bits=8), first_last_bits=None)
    with torch.no_grad():
        model[0].weight_quantizer.log_scale -= 25
        model[0].bias[1] = 3
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, None)],
                         target='onnxruntime')
    assert dict(report.biases)['0'] == 'it does not fit in int32'
    assert report.parity.mean_difference < 1e-3 * report.parity.spread


@pytest.mark.parametrize('gain', [1e-9, 1e-6, 0.0])
def test_a_channel_that_is_all_but_shut_keeps_the_kernel(tmp_path, gain):
    """Its bias outweighs its weights by far; the others stay to the bit."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 8, 8, generator=generator)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), batch_norm(6, generator), nn.ReLU(),
        nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model[1].weight[2], model[1].bias[2] = gain, 0.7
    quantized(model, x, first_last_bits=None)
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, None)],
                         target='onnxruntime')
    assert dict(report.biases)['0'] == ''
    plain = export_onnx(model, tmp_path / 'plain.onnx', [(x, None)])
    assert plain.parity.mean_difference < 1e-6
    assert report.parity.mean_difference < 0.01 * report.parity.spread


@pytest.mark.parametrize('target', [None, 'onnxruntime'])
@pytest.mark.parametrize('per_channel', [True, False])
@pytest.mark.parametrize('groups', [1, 2, 4])
def test_groups_of_a_transposed_convolution_share_steps(groups, per_channel,
                                                        target, tmp_path):
    """Its bias has one for each output channel, of all groups."""
    x = torch.rand(40, 4, 6, 6)
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 8, 2, 2, groups=groups), nn.ReLU(),
        nn.Conv2d(8, 3, 3))
    with torch.no_grad():
        model[0].bias.copy_(torch.linspace(-2, 2, 8))
    quantized(model, x, weight=dict(bits=8, per_channel=per_channel),
              activation=dict(bits=8), first_last_bits=None)
    path = tmp_path / 'model.onnx'
    export_onnx(model, path, [(x, None)], target=target)
    with torch.no_grad():
        found, wanted = answers(path, x), model(x)
    # The kernels round biases to their steps.
    assert (found - wanted).abs().max() < 0.02 * wanted.std()


@pytest.mark.parametrize('positive', [False, True])
@pytest.mark.parametrize('bits', [4, 8])
def test_a_weight_around_another_zero_is_not_folded(bits, positive, tmp_path):
    """A negative gain would turn its zero point, and a step is positive."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, 8, 8, generator=generator)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), batch_norm(6, generator))
    with torch.no_grad():
        model[0].weight.add_(0.1)
        if positive:
            model[1].weight.abs_()
    quantized(model, x, weight=dict(bits=bits, symmetric=False),
              first_last_bits=None)
    assert model[0].weight_quantizer.zero_point.any()
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)])
    assert report.moved_weights == 0
    with torch.no_grad():
        assert_same(answers(path, x), model(x))
    assert 'BatchNormalization' in [
        node.op_type for node in onnx.load(path).graph.node]
