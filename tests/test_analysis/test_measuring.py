"""What measurements share: a model left alone, layers, bars."""

import io
import math
import subprocess
import sys

import pytest
import torch
from exact_hessian import small_batches, small_net
from torch import nn

import fpq_plugin
from fpq_plugin import analysis
from fpq_plugin.analysis import (
    Estimate,
    PlainBatch,
    channel_ranges,
    feature_histograms,
    hessian_trace,
    layer_sqnr,
    left_unchanged,
    loss_slice,
    noise_gradient_norm,
    output_variance,
    spectral_density,
    top_eigenvalues,
)
from fpq_plugin.analysis.measuring import (
    ProgressBar,
    values_restored,
    weighted_layers,
)
from fpq_plugin.analysis.tradeoff import latencies, top1_accuracy

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
    'accuracy': top1_accuracy,
    'latency': lambda m, b: latencies(dict(m=m), dict(m=b[0]), 1),
}
OBSERVED = dict(type='TorchAOFakeQuantize', bits=4)


def snapshot(model):
    return dict(
        state={k: v.clone() for k, v in model.state_dict().items()},
        modes=[m.training for m in model.modules()],
        grads=[(p.requires_grad, p.grad) for p in model.parameters()],
        hooks=[(len(m._forward_hooks), len(m._forward_pre_hooks))
               for m in model.modules()],
        rng=torch.get_rng_state())


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


def test_a_wrong_layer_is_told_with_the_nearest_names():
    model = nn.Sequential()
    model.add_module('backbone', nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match=r'backbon.*Nearest names: backbone'):
        hessian_trace(model, [], layers=['backbon'])


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match='no layer of a type'):
        hessian_trace(nn.ReLU(), [])


def test_the_former_name_is_kept():
    assert analysis.quiet is left_unchanged


def test_values_are_restored_after_an_error():
    tensor = torch.arange(4.)
    with pytest.raises(TypeError), values_restored([tensor]):
        tensor.add_(1).add_(None)
    torch.testing.assert_close(tensor, torch.arange(4.))


def test_an_estimate_is_the_mean_with_its_standard_error():
    found = Estimate.from_samples(torch.tensor([1., 2., 3., 6.]))
    assert found.value == 3
    assert math.isclose(found.error, (14 / 3)**0.5 / 2)
    assert str(found) == '3 +- 1.1'
    assert str(Estimate(12345.6, 123.4)) == '12350 +- 120'
    assert Estimate.from_samples(torch.tensor([5.])) == Estimate(5.0, 0.0)


SCRIPT = """
from fpq_plugin.analysis.measuring import ProgressBar
for total in (500, None):
    with ProgressBar('trace', total, 'products', True) as bar:
        for _ in range(500):
            bar.step()
with ProgressBar('silent', 500, 'products', False) as bar:
    bar.step()
"""


def test_a_pipe_gets_a_line_at_the_start_and_one_at_the_end():
    done = subprocess.run([sys.executable, '-c', SCRIPT], check=True,
                          capture_output=True, text=True, timeout=120)
    assert done.stdout == ''
    lines = [line for line in done.stderr.splitlines()
             if 'trace' in line or 'silent' in line]
    assert [line.partition(' done in ')[0] for line in lines] == [
        'trace: 500 products', 'trace:', 'trace', 'trace:']


class Terminal(io.StringIO):

    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_with_title_and_count(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    monkeypatch.setenv('TERM', 'xterm')
    with ProgressBar('trace', 5, 'products', True) as bar:
        for _ in range(3):
            bar.step()
    shown = sys.stderr.getvalue()
    assert 'trace' in shown
    assert '3/5' in shown
    assert 'products' in shown
    assert 'done in' not in shown


def test_a_bar_ends_with_an_error_and_does_not_say_done(capsys):
    with pytest.raises(KeyError), ProgressBar('trace', 5, 'products', True):
        raise KeyError
    assert capsys.readouterr().err == 'trace: 5 products\n'


@pytest.mark.parametrize('converted', [False, True])
@pytest.mark.parametrize('norm', [
    nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_layers_that_compute_their_weight_are_left_out(norm, converted):
    model = nn.Sequential(norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    if converted:
        fpq_plugin.convert(model)
    with pytest.warns(UserWarning, match='compute their weight.*: 0. Take'):
        assert list(weighted_layers(model)) == ['1']
