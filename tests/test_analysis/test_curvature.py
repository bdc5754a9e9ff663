"""Trace, eigenvalues and density against exact Hessians."""

import math

import pytest
import torch
from exact_hessian import (
    exact_hessian,
    small_batches,
    small_net,
    softmax_hessian,
)
from torch import nn

import fpq_plugin
from fpq_plugin.analysis import (
    PlainBatch,
    hessian_trace,
    noise_gradient_norm,
    spectral_density,
    top_eigenvalues,
)
from fpq_plugin.analysis.measuring import weighted_layers

QUANTIZED = pytest.mark.parametrize('quantized', [False, True])


@QUANTIZED
def test_trace_is_exact_within_its_error(quantized):
    model, batches = small_net(quantized), small_batches()
    exact = exact_hessian(model, batches)
    found = hessian_trace(model, batches, probes=200)
    # The variance of v.Hv over signs is twice that of H off the diagonal.
    off = exact - torch.diag(exact.diagonal())
    stated = float(2**0.5 * off.norm()) / 200**0.5
    assert math.isclose(found.total.error, stated, rel_tol=0.15)
    assert abs(found.total.value - exact.trace()) < 4 * stated
    sizes = [w.weight.numel() for w in weighted_layers(model).values()]
    blocks = exact.diagonal().split(sizes)
    for block, layer in zip(blocks, found.layers.values()):
        assert abs(layer.value - block.sum()) < 4 * layer.error + 1e-12
    assert math.isclose(
        sum(layer.value for layer in found.layers.values()),
        found.total.value, rel_tol=1e-9)


def test_trace_of_a_quadratic_has_no_error():
    # Loss |W x|^2 summed over outputs: H = 2 mean(x x^T) for each row; with
    # orthogonal inputs it is diagonal, where sign probes are exact.
    model = nn.Linear(3, 2, bias=False).double()
    inputs = torch.diag(torch.tensor([1., 2., 3.])).double()
    batch = PlainBatch(inputs, torch.zeros(3, 2).double(),
                       lambda z, y: (z - y).square().sum(1).mean())
    found = hessian_trace(model, [batch], probes=3)
    assert math.isclose(found.total.value, 2 * 2 * (1 + 4 + 9) / 3)
    assert found.total.error < 1e-12
    assert found.data_error == 0.0


def test_linear_softmax_has_its_closed_form():
    model = nn.Linear(4, 3, bias=False).double()
    inputs = torch.randn(10, 4).double()
    batches = [
        PlainBatch(inputs[:7], torch.randint(3, (7, ))),
        PlainBatch(inputs[7:], torch.randint(3, (3, )))
    ]
    exact = softmax_hessian(inputs, model.weight.detach())
    trace = hessian_trace(model, batches, probes=200).total
    assert abs(trace.value - exact.trace()) < 4 * trace.error + 1e-12
    values = torch.linalg.eigvalsh(exact).flip(0)
    for found, value in zip(top_eigenvalues(model, batches, k=3), values):
        assert abs(found.value - value) <= found.error + 1e-12


def test_data_error_is_that_of_a_weighted_mean():
    model = nn.Linear(1, 1, bias=False).double()

    def batch(values):
        x = torch.tensor(values).double()[:, None]
        return PlainBatch(x, torch.zeros_like(x), nn.functional.mse_loss)

    # Each batch's trace is 2 mean(x^2): 2, 8 and 18.
    found = hessian_trace(model, [batch([1.]), batch([2.]), batch([3.])], 2)
    assert math.isclose(found.total.value, 28 / 3)
    spread = torch.tensor([2., 8., 18.]).std()
    assert math.isclose(found.data_error, spread / 3**0.5, rel_tol=1e-6)


@QUANTIZED
@pytest.mark.parametrize('smallest', [False, True])
def test_eigenvalues_are_exact_within_their_error(quantized, smallest):
    model, batches = small_net(quantized), small_batches()
    exact = torch.linalg.eigvalsh(exact_hessian(model, batches))
    exact = exact[:3] if smallest else exact.flip(0)[:3]
    found = top_eigenvalues(model, batches, k=3, smallest=smallest,
                            tolerance=1e-6)
    for one, value in zip(found, exact):
        assert abs(one.value - value) <= one.error + 1e-9
        assert one.error < 1e-3 * exact.abs().max()


@QUANTIZED
def test_density_is_the_smoothed_exact_spectrum(quantized):
    model, batches = small_net(quantized), small_batches()
    exact = torch.linalg.eigvalsh(exact_hessian(model, batches))
    bounds = (float(exact[0]), float(exact[-1]))
    # Few vectors: Lanczos without reorthogonalisation stays exact.
    found = spectral_density(model, batches, bounds, vectors=24, repeats=10)
    dx = float(found.grid[1] - found.grid[0])
    assert math.isclose(float(found.density.sum()) * dx, 1, abs_tol=0.02)
    mean = float((found.grid * found.density).sum()) * dx
    error = float(exact.std()) / (10 * len(exact))**0.5
    assert abs(mean - float(exact.mean())) < 5 * error
    # 24 vectors and bumps of curvlinops's width, kappa = 3, 5 % of margin.
    width = 1.1 * (bounds[1] - bounds[0]) / 23 / math.sqrt(8 * math.log(3))
    square = float((found.grid.square() * found.density).sum()) * dx
    assert math.isclose(
        square, float(exact.square().mean()) + width**2, rel_tol=0.15)


def test_a_pattern_limits_the_weights():
    model, batches = small_net(True), small_batches()
    exact = exact_hessian(model, batches).diagonal()
    found = hessian_trace(model, batches, 300, layers=['6'])
    assert list(found.layers) == ['6']
    head = exact[-model[6].weight.numel():].sum()
    assert abs(found.total.value - head) < 4 * found.total.error


def test_brevitas_lsq_has_the_curvature_of_our_own():
    traces = []
    for backend in ('torch_ao', 'brevitas'):
        model, batches = small_net(False).float(), small_batches()
        batches = [PlainBatch(b.inputs.float(), b.target) for b in batches]
        fpq_plugin.convert(model, backend=backend)
        fpq_plugin.calibrate(model, [b.inputs for b in batches])
        traces.append(hessian_trace(model, batches, 4).total.value)
    assert math.isclose(*traces, rel_tol=1e-3)


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
