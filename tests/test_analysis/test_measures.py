"""The measurements beside curvature, against closed forms and references."""

import copy
import math

import pytest
import torch
from exact_hessian import small_batches, small_net
from torch import nn

import fpq_plugin
from fpq_plugin.analysis import (
    PlainBatch,
    channel_ranges,
    feature_histograms,
    filter_normalised,
    hessian_trace,
    layer_sqnr,
    loss_slice,
    mean_loss,
    noise_gradient_norm,
    output_variance,
    spectral_density,
    top_eigenvalues,
)
from fpq_plugin.analysis.measuring import weighted_layers
from fpq_plugin.analysis.noise import feature_steps, weight_steps

MEASURES = {
    'trace': lambda m, b: hessian_trace(m, b, 2),
    'eigenvalues': lambda m, b: top_eigenvalues(m, b, 1),
    'density': lambda m, b: spectral_density(m, b, (-1, 1), 4),
    'noise gradient': lambda m, b: noise_gradient_norm(m, b, 2),
    'output variance': lambda m, b: output_variance(m, b, draws=2),
    'slice': lambda m, b: loss_slice(m, b, [-1, 1], axes=2),
    'sqnr': layer_sqnr,
    'channels': lambda m, b: channel_ranges(m, b, '3'),
    'histograms': lambda m, b: feature_histograms(dict(m=m), dict(m=b), '3'),
}


def mean_square_loss(z, y):
    return (z - y).square().mean()


def snapshot(model):
    return dict(
        state={k: v.clone() for k, v in model.state_dict().items()},
        modes=[m.training for m in model.modules()],
        grads=[(p.requires_grad, p.grad) for p in model.parameters()],
        hooks=[(len(m._forward_hooks), len(m._forward_pre_hooks))
               for m in model.modules()],
        rng=torch.get_rng_state())


OBSERVED = dict(type='TorchAOFakeQuantize', bits=4)


@pytest.mark.parametrize(('backend', 'more'), [
    ('float', {}), ('torch_ao', {}), ('brevitas', {}),
    ('torch_ao', dict(weight=OBSERVED, activation=OBSERVED))])
@pytest.mark.parametrize('name', list(MEASURES))
def test_the_model_is_left_as_it_was(name, backend, more):
    model, batches = small_net(False), small_batches(2, 4)
    if backend != 'float':
        fpq_plugin.convert(
            model.float(), backend=backend, perturbation=dict(p=1.0), **more)
        fpq_plugin.calibrate(model, [b.inputs.float() for b in batches])
        batches = [PlainBatch(b.inputs.float(), b.target) for b in batches]
    model.train()
    model[2].eval()
    if more:
        model[0].input_quantizer.fake.disable_observer()
    model[0].weight.requires_grad_(False)
    before = snapshot(model)
    assert MEASURES[name](model, batches) is not None
    after = snapshot(model)
    for key, value in before.pop('state').items():
        assert torch.equal(value, after['state'][key]), key
    assert torch.equal(before.pop('rng'), after['rng'])
    for key, value in before.items():
        assert value == after[key], key


def test_an_error_leaves_the_model_as_it_was():
    model = small_net(True)
    broken = PlainBatch(torch.randn(2, 5).double(), torch.zeros(2).long())
    before = snapshot(model)
    for name in ('trace', 'noise gradient', 'slice', 'sqnr', 'channels'):
        with pytest.raises(RuntimeError):
            MEASURES[name](model, [broken])
    after = snapshot(model)
    assert before['modes'] == after['modes']
    assert before['grads'] == after['grads']
    assert before['hooks'] == after['hooks']
    assert torch.equal(before['rng'], after['rng'])


def test_brevitas_lsq_has_the_curvature_of_our_own():
    traces = []
    for backend in ('torch_ao', 'brevitas'):
        model, batches = small_net(False).float(), small_batches()
        batches = [PlainBatch(b.inputs.float(), b.target) for b in batches]
        fpq_plugin.convert(model, backend=backend)
        fpq_plugin.calibrate(model, [b.inputs for b in batches])
        traces.append(hessian_trace(model, batches, 4).total.value)
    assert math.isclose(*traces, rel_tol=1e-3)


def test_variance_of_a_linear_model_is_its_closed_form():
    # Var(W e) = sigma^2 |w_j|^2, the mean over the outputs j.
    model = nn.Linear(6, 4).double()
    batch = PlainBatch(torch.randn(400, 6).double(), torch.zeros(400))
    found = output_variance(model, [batch], [0.1, 2.0], draws=40)
    rows = float(model.weight.square().sum(1).mean())
    for sigma, variance in zip(found.sigmas, found.variances):
        assert abs(variance.value - sigma**2 * rows) < 4 * variance.error
        assert variance.error < 0.02 * variance.value
    exact = model(batch.inputs).var(0).mean()
    assert math.isclose(found.clean, exact, rel_tol=1e-9)


@pytest.mark.parametrize('bits', [None, 4])
def test_gradient_norm_of_a_linear_model_is_its_closed_form(bits):
    # Loss mean((x w)^2) of one sample and one output: the gradient is
    # 2 (x.w) x, so noise d on x gives 2 |(x + d).w| |x + d|; x without the
    # places where the weight is clipped.
    model = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    x = torch.randn(1, 5).double()
    if bits:
        fpq_plugin.convert(model, first_last_bits=None)
        fpq_plugin.calibrate(model, [x])
    batch = PlainBatch(x, torch.zeros(1, 1).double(), mean_square_loss)
    layers = weighted_layers(model)
    step = float(feature_steps(model, layers, [batch])['0'])
    layer = model[0]
    with torch.no_grad():
        layer.weight[0, 2] = 0.9
    weight_step = weight_steps(layers)['0']
    weight = layer.weight.detach()
    passes = torch.ones(1, 5).double()
    if bits:
        steps = (weight / weight_step).round()
        passes = ((steps >= -8) & (steps <= 7)).double()
        assert math.isclose(step, float(layer.input_quantizer.step()))
        x, weight = layer.input_quantizer(x), layer.weight_quantizer(weight)
    else:
        assert math.isclose(step, float(x.max() - x.min()) / 15)
        assert math.isclose(float(weight_step),
                            2 * float(weight.abs().max()) / 15)

    def norms(x, weight):
        return 2 * (x * weight).sum(1).abs() * (x * passes).norm(dim=1)

    with torch.no_grad():
        noise = torch.rand(20000, 5).double() - 0.5
        features = norms(x + noise * step, weight)
        weights = norms(x, weight + noise * weight_step)
        clean = norms(x, weight)
    found = noise_gradient_norm(model, [batch], draws=400)
    assert math.isclose(found.clean, float(clean), rel_tol=1e-6)
    for ours, exact in ((found.feature, features), (found.weight, weights)):
        assert ours.error > 0
        assert abs(ours.value - exact.mean()) < 4 * ours.error
    square = ((x * weight).sum()**2, ((x + noise * step) * weight),
              (x * (weight + noise * weight_step)))
    assert math.isclose(found.clean_loss, float(square[0]))
    for ours, terms in ((found.feature_loss, square[1]),
                        (found.weight_loss, square[2])):
        exact = terms.sum(1).square().mean()
        assert abs(ours.value - exact) < 4 * ours.error


def test_noise_is_on_the_layers_that_were_named():
    model, batches = small_net(True), small_batches()
    everywhere = noise_gradient_norm(model, batches, 4)
    head = noise_gradient_norm(model, batches, 4, layers=['6'])
    assert head.clean != everywhere.clean
    assert head.feature.error < everywhere.feature.error


def test_filter_normalised_directions_have_the_filters_norms():
    weights = [torch.randn(4, 3, 2, 2), torch.randn(5, 7)]
    weights[0][1] = 0
    for weight, direction in zip(weights, filter_normalised(weights)):
        assert direction.shape == weight.shape
        torch.testing.assert_close(
            direction.flatten(1).norm(dim=1),
            weight.flatten(1).norm(dim=1))


def test_slices_of_a_quadratic_are_parabolas():
    model = nn.Linear(3, 2, bias=False).double()
    batch = PlainBatch(
        torch.randn(6, 3).double(), torch.randn(6, 2).double(),
        mean_square_loss)
    steps = [-1, -0.5, 0, 0.5, 1]
    line = loss_slice(model, [batch], steps)
    assert math.isclose(line[2], mean_loss(model, [batch]))
    third = line.diff().diff().diff()
    torch.testing.assert_close(third, torch.zeros(2).double())
    plane = loss_slice(model, [batch], steps, axes=2)
    assert math.isclose(plane[2, 2], line[2])
    torch.testing.assert_close(plane[:, 2], line)
    mixed = plane.diff(dim=0).diff(dim=1)
    torch.testing.assert_close(mixed, mixed[:1, :1].expand(4, 4))
    with pytest.raises(ValueError, match='axes must be 1 or 2'):
        loss_slice(model, [batch], steps, axes=3)


def test_sqnr_is_that_of_torchs_own_fake_quantization():
    layer = nn.Linear(32, 8)
    model = nn.Sequential(layer)
    batches = [
        PlainBatch(torch.rand(16, 32), torch.zeros(16)) for _ in range(2)
    ]
    fpq_plugin.convert(model, first_last_bits=None)
    fpq_plugin.calibrate(model, [b.inputs for b in batches])
    x = torch.cat([b.inputs for b in batches])
    act, w = layer.input_quantizer, layer.weight_quantizer
    x_hat = torch.fake_quantize_per_tensor_affine(
        x, float(act.step()), int(act.zero_point), 0, 15)
    w_hat = torch.fake_quantize_per_channel_affine(
        layer.weight, w.step(), w.zero_point, 0, -8, 7)
    found = layer_sqnr(model, batches)['0']
    linear = nn.functional.linear
    for value, exact, quantized in (
        (found.weight, layer.weight, w_hat), (found.input, x, x_hat),
        (found.output, linear(x, layer.weight, layer.bias),
         linear(x_hat, w_hat, layer.bias))):
        with torch.no_grad():
            ratio = exact.square().sum() / (exact - quantized).square().sum()
        assert math.isclose(value, 10 * ratio.log10(), rel_tol=1e-3)
    assert 10 < found.weight < 40
    assert layer_sqnr(nn.Sequential(nn.Linear(32, 8)), batches) == {}


def test_channels_and_histograms_are_those_of_the_layers_output():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(3 * 36, 2))
    batches = [
        PlainBatch(torch.randn(n, 1, 8, 8), torch.zeros(n)) for n in (4, 3)
    ]
    out = torch.cat([model[0](b.inputs) for b in batches]).detach()
    found = channel_ranges(model, batches, '0')
    torch.testing.assert_close(found.low, out.amin((0, 2, 3)))
    torch.testing.assert_close(found.high, out.amax((0, 2, 3)))
    torch.testing.assert_close(found.mean, out.mean((0, 2, 3)))
    histograms = feature_histograms(dict(a=model), dict(a=batches), '0')
    edges = histograms.edges
    exact = torch.histogram(out.flatten().double(), edges)[0] / out.numel()
    width = edges[1] - edges[0]
    torch.testing.assert_close(histograms.densities['a'] * width, exact)
    assert 0.995 < exact.sum() <= 1


def test_a_layer_that_is_not_called_is_told():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].unused = nn.Linear(2, 2)
    batch = PlainBatch(torch.randn(2, 2), torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"not call the layer '0\.unused'"):
        channel_ranges(model, [batch], '0.unused')


@pytest.mark.parametrize(('layer', 'shape', 'axis'), [
    (nn.Conv1d(2, 3, 3), (2, 9), 1),
    (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 1),
    (nn.ConvTranspose2d(2, 3, 3), (2, 5, 6), 1),
    (nn.Linear(4, 3), (7, 4), -1),
], ids=str)
@pytest.mark.parametrize('quantize', [False, True])
def test_channels_are_those_of_any_layer(layer, shape, axis, quantize):
    model = nn.Sequential(copy.deepcopy(layer))
    x = torch.randn(5, *shape)
    if quantize:
        fpq_plugin.convert(model)
        fpq_plugin.calibrate(model, [x])
    found = channel_ranges(model, [PlainBatch(x, torch.zeros(5))], '0')
    out = model.eval()(x).detach().movedim(axis, 0).flatten(1)
    torch.testing.assert_close(found.low, out.amin(1))
    torch.testing.assert_close(found.high, out.amax(1))


def test_weight_steps_are_along_the_output_channels():
    layer = nn.ConvTranspose2d(2, 3, 3)
    steps = weight_steps(dict(up=layer))['up']
    wanted = [2 * layer.weight[:, c].abs().max() / 15 for c in range(3)]
    torch.testing.assert_close(
        steps, torch.stack(wanted).detach().view(1, 3, 1, 1))
    model = nn.Sequential(layer)
    fpq_plugin.convert(model, first_last_bits=None)
    fpq_plugin.calibrate(model, [torch.randn(4, 2, 5, 5)])
    steps = weight_steps(dict(up=layer))['up']
    torch.testing.assert_close(
        steps, layer.weight_quantizer.step().view(1, 3, 1, 1))


class Unused(nn.Module):
    """Has a layer that it calls, and one whose output it drops."""

    def __init__(self):
        super().__init__()
        self.used, self.dropped = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        self.dropped(x)
        return self.used(x)


def test_a_layer_without_a_part_in_the_loss_has_no_curvature():
    torch.manual_seed(0)
    model = Unused()
    batches = [PlainBatch(torch.randn(6, 4), torch.randint(2, (6, )))]
    both = hessian_trace(model, batches, 8)
    alone = hessian_trace(model, batches, 8, layers=['used'])
    assert both.layers['dropped'].value == 0
    assert both.layers['used'].value > 0
    assert math.isclose(alone.total.value, alone.layers['used'].value,
                        rel_tol=1e-5)
    norms = noise_gradient_norm(model, batches, 2)
    only = noise_gradient_norm(model, batches, 2, layers=['used'])
    assert math.isclose(norms.clean, only.clean, rel_tol=1e-6)
    assert hessian_trace(model, batches, 2, layers=['dropped']
                         ).total.value == 0


class CrossAttention(nn.Module):

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x + 1, x * 2, need_weights=False)[0].mean(1)


def test_attention_is_measured_in_its_projections():
    """A float model has the layers of its quantized form, for the call."""
    torch.manual_seed(0)
    model = CrossAttention()
    batches = [PlainBatch(torch.randn(6, 5, 8), torch.randint(8, (6, )))]
    names = ['attention.in_projection', 'attention.out_proj']
    before = list(model.modules())
    found = hessian_trace(model, batches, 4)
    assert sorted(found.layers) == names
    noise = noise_gradient_norm(model, batches, 2)
    assert noise.feature.value != noise.clean
    assert type(model.attention) is nn.MultiheadAttention
    assert list(model.modules()) == before

    fpq_plugin.convert(model, first_last_bits=None)
    fpq_plugin.calibrate(model, [batches[0].inputs])
    assert sorted(hessian_trace(model, batches, 4).layers) == names
    errors = layer_sqnr(model, batches)
    assert sorted(errors) == names
    assert all(5 < e.output < 60 for e in errors.values())
