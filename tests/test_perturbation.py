"""SFP's draws: mean, range, variance, frequency, place and its key."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from fpq_plugin import (
    LSQFakeQuantize,
    StochasticFeaturePerturbation,
    calibrate,
    convert,
)
from fpq_plugin._compat.versions import HAS_CUSTOM_OPS
from fpq_plugin.convert import noise_clock
from fpq_plugin.perturbation import NoiseClock, in_backward, mix


def make(**kwargs):
    perturbation = StochasticFeaturePerturbation(**kwargs)
    quantizer = LSQFakeQuantize(bits=4)
    quantizer.observe(torch.tensor([0.0, 3.0]))
    quantizer.initialize()
    return perturbation, quantizer


def noise_of(perturbation, quantizer, x):
    return (perturbation(x, quantizer) - quantizer(x)).detach()


def test_noise_is_uniform_on_one_step():
    perturbation, quantizer = make(p=1.0)
    step = quantizer.step().item()
    assert step == pytest.approx(0.2)
    noise = noise_of(perturbation, quantizer, torch.rand(200, 1000) * 3)
    count = noise.numel()
    assert noise.abs().max().item() <= step / 2 * (1 + 1e-5)
    assert noise.abs().max().item() > step / 2 * 0.999
    sigma = step / math.sqrt(12)
    assert abs(noise.mean().item()) < 5 * sigma / math.sqrt(count)
    # Var of the sample variance of a uniform: (kurtosis 1.8 - 1) sigma^4 / n.
    spread = math.sqrt(0.8 / count) * sigma**2
    assert noise.var().item() == pytest.approx(sigma**2, abs=5 * spread)
    histogram = torch.histc(noise, 20, -step / 2, step / 2) / count
    assert (histogram - 0.05).abs().max().item() < 5 * math.sqrt(0.05 / count)


@pytest.mark.parametrize('p', [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_call_is_perturbed_with_probability_p(p):
    perturbation, quantizer = make(p=p)
    x = torch.rand(4)
    calls = 4000
    hits = sum(
        bool(noise_of(perturbation, quantizer, x).any())
        for _ in range(calls))
    assert abs(hits - p * calls) <= 5 * math.sqrt(calls * p * (1 - p))


def test_draw_per_sample():
    perturbation, quantizer = make(p=0.3, granularity='sample')
    noise = noise_of(perturbation, quantizer, torch.rand(5000, 2, 3))
    hit = noise.flatten(1).abs().sum(1) > 0
    assert abs(hit.sum().item() - 1500) < 5 * math.sqrt(5000 * 0.21)
    assert (noise[hit] != 0).float().mean().item() > 0.999


def test_before_is_a_dither_of_the_quantizers_input():
    perturbation, quantizer = make(p=1.0, where='before')
    x = torch.full((10000, ), 1.05)  # a quarter of a step above a level
    out = perturbation(x, quantizer)
    assert out.unique().numel() == 2
    assert out.mean().item() == pytest.approx(1.05, abs=0.005)


def test_none_in_eval_and_none_without_a_step():
    perturbation, quantizer = make(p=1.0)
    x = torch.rand(100)
    assert noise_of(perturbation.eval(), quantizer, x).abs().max() == 0
    perturbation.train()
    quantizer.disable_fake_quant()
    assert torch.equal(perturbation(x, quantizer), x)


def test_gradient_passes_and_the_step_gets_none_from_the_noise():
    perturbation, quantizer = make(p=1.0)
    x = (torch.rand(50) * 3).requires_grad_()
    perturbation(x, quantizer).sum().backward()
    with_noise = x.grad.clone(), quantizer.scale.grad.clone()
    x.grad = quantizer.scale.grad = None
    quantizer(x).sum().backward()
    assert torch.equal(with_noise[0], x.grad)
    assert torch.equal(with_noise[1], quantizer.scale.grad)


def test_noise_is_a_function_of_seed_rank_iteration_and_layer():

    def draw(seed=3, rank=0, iteration=7, layer=2):
        perturbation, quantizer = make(p=1.0)
        clock = NoiseClock()
        clock.seed, clock.rank = seed, rank
        perturbation.set_clock(clock, layer)
        clock.start_iteration(iteration)
        torch.rand(5)  # the global generator has no part in it
        return noise_of(perturbation, quantizer, torch.linspace(0, 3, 64))

    base = draw()
    assert torch.equal(base, draw())
    for other in (draw(seed=4), draw(rank=1), draw(iteration=8),
                  draw(layer=3)):
        assert not torch.equal(base, other)


def test_the_global_generator_is_left_alone():
    perturbation, quantizer = make(p=1.0)
    state = torch.get_rng_state()
    perturbation(torch.rand(0), quantizer)
    perturbation(torch.ones(10), quantizer)
    assert torch.equal(torch.get_rng_state(), state)


class Chain(nn.Module):
    """Layers by name, each of which may run under checkpointing."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.layers = nn.ModuleDict({n: nn.Linear(6, 6) for n in set(names)})
        self.reentrant = None

    def forward(self, x):
        outs = []
        for name in self.names:
            if self.reentrant is None:
                x = self.layers[name](x)
            else:
                x = checkpoint(
                    self.layers[name], x, use_reentrant=self.reentrant)
            outs.append(x)
        return torch.stack(outs).square().mean()


def checkpointed(names, backend):
    """The gradients of a chain, plain or under checkpointing."""
    model = Chain(names)
    convert(model, perturbation=dict(p=0.7), backend=backend)
    x = torch.randn(4, 6, requires_grad=True)
    model(x)  # initialises the quantizers

    def gradients(reentrant):
        model.reentrant = reentrant
        noise_clock(model).start_iteration(5)
        model.zero_grad()
        x.grad = None
        model(x).backward()
        return [x.grad.clone()] + [
            p.grad.clone() for p in model.parameters()]

    return gradients


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_replays_the_noise(reentrant, backend):
    """The second forward, inside the backward, must see the same noise."""
    gradients = checkpointed('abc', backend)
    for plain, replayed in zip(gradients(None), gradients(reentrant)):
        torch.testing.assert_close(replayed, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointing_a_shared_perturbed_layer_is_refused(reentrant):
    """Which of its calls is run again cannot be told."""
    gradients = checkpointed('aba', 'torch_ao')
    gradients(None)
    with pytest.raises(RuntimeError, match='called 2 times in one forward'):
        gradients(reentrant)


def test_each_call_of_a_shared_layer_draws_its_own_noise(backend):
    model = Chain('aaa')
    convert(model, perturbation=dict(p=1.0), backend=backend)
    seen = []
    layer = model.layers['a']
    perturb = layer.perturbation.perturb
    layer.perturbation.perturb = lambda x, step, key: seen.append(
        key) or perturb(x, step, key)
    model(torch.randn(4, 6))
    model(torch.randn(4, 6))
    # The very first call only initialises the quantizer.
    assert len(seen) == 5
    assert len(set(seen)) == 5


@pytest.mark.parametrize(('option', 'message'), [
    (dict(p=1.5), 'p must be a probability'),
    (dict(p=-0.1), 'p must be a probability'),
    (dict(p=float('nan')), 'p must be a probability'),
    (dict(where='inside'), "where must be 'after' or 'before'"),
    (dict(granularity='batch'), "granularity must be 'call' or 'sample'"),
])
def test_wrong_options(option, message):
    with pytest.raises(ValueError, match=message):
        StochasticFeaturePerturbation(**option)


@pytest.mark.parametrize('where', ['after', 'before'])
@pytest.mark.parametrize('granularity', ['call', 'sample'])
def test_a_batch_without_elements_passes(where, granularity):
    perturbation = StochasticFeaturePerturbation(
        p=1.0, where=where, granularity=granularity)
    x = torch.randn(0, 4, requires_grad=True)
    out = perturbation(x, make()[1])
    out.sum().backward()
    assert out.shape == x.grad.shape == (0, 4)


def quantized(p=1.0, **options):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3))
    convert(
        model,
        weight=dict(bits=2),
        perturbation=dict(
            type='StochasticWeightPerturbation', p=p, **options))
    calibrate(model, [torch.randn(4, 2, 8, 8)])
    return model


def weights_of(layer):
    """Quantized weight as the operation gets it, and without noise."""
    seen = []
    layer.op = lambda x, weight: seen.append(weight) or x
    layer(torch.randn(2, 2, 8, 8))
    del layer.op
    return seen[0], layer.weight_quantizer(layer.weight)


def test_noise_is_uniform_of_each_channels_step():
    layer = quantized()[0]
    noisy, clean = weights_of(layer)
    step = layer.weight_quantizer.step().view(-1, 1, 1, 1)
    noise = ((noisy - clean) / step).detach()
    assert noise.abs().max() <= 0.5 + 1e-4
    assert noise.abs().amax((1, 2, 3)).min() > 0.3
    assert noise.std().item() == pytest.approx(12**-0.5, rel=0.3)


@pytest.mark.parametrize('part', ['eval', 'p=0'])
def test_no_noise_in_eval_mode_or_without_chance(part):
    layer = quantized(p=0.0 if part == 'p=0' else 1.0)[0]
    noisy, clean = weights_of(layer.train(part != 'eval'))
    assert torch.equal(noisy, clean)


def test_features_have_none():
    layer = quantized()[0]
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(layer.quantized_input(x), layer.input_quantizer(x))


def test_gradients_pass():
    model = quantized(where='before')
    model(torch.randn(2, 2, 8, 8)).sum().backward()
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_brevitas_layers_refuse_it():
    pytest.importorskip('brevitas')
    with pytest.raises(ValueError, match="backend='torch_ao'"):
        convert(
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
            backend='brevitas',
            perturbation=dict(type='StochasticWeightPerturbation'))


def test_brevitas_layers_refuse_grids_without_an_integer_zero_point():
    pytest.importorskip('brevitas')
    with pytest.raises(ValueError, match='integer zero point'):
        convert(
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
            backend='brevitas',
            activation=dict(type='LSQPlusFakeQuantize'))


def test_transposed_convolutions_have_their_channels_on_another_axis():
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 3, 3), nn.ConvTranspose2d(3, 4, 3))
    convert(
        model,
        weight=dict(bits=2),
        perturbation=dict(type='StochasticWeightPerturbation', p=1.0))
    calibrate(model, [torch.randn(4, 2, 8, 8)])
    layer = model[0]
    clean = layer.weight_quantizer(layer.weight)
    noise = (layer.quantized_weight(layer.weight) - clean).abs()
    step = layer.weight_quantizer.step()
    assert step.shape == (3, )
    assert (noise.amax((0, 2, 3)) / step).max() <= 0.5 + 1e-4
    assert (noise.amax((0, 2, 3)) / step).min() > 0.3


WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)


def splitmix64(state):
    """Vigna's generator, from its definition: the next state and output."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_one_word_is_splitmix64s_first_output():
    # The published first output of the seed 1234567.
    assert mix(1234567) == 6457827717110365317


@given(WORDS)
def test_words_are_absorbed_one_after_the_other(words):
    state = 0
    for word in words:
        state = splitmix64((state + word) % 2**64)
    assert mix(*words) == state


def test_keys_differ_by_every_part_of_the_place():
    clock = NoiseClock()
    keys = {clock.key(0, 0), clock.key(1, 0), clock.key(0, 1)}
    for name in ('seed', 'rank', 'iteration'):
        other = NoiseClock()
        setattr(other, name, 1)
        keys.add(other.key(0, 0))
    assert len(keys) == 6
    assert NoiseClock().key(0, 0) == clock.key(0, 0)


def test_keys_are_spread_evenly():
    """Shares of 64 equal parts of the range: chi squared, 63 degrees."""
    clock = NoiseClock()
    counts = torch.zeros(64)
    for layer in range(64):
        for call in range(100):
            counts[clock.key(layer, call) >> 58] += 1
    assert ((counts - 100).square() / 100).sum() < 120


def test_a_forward_counts_in_training_alone():
    clock, model = NoiseClock(), nn.Linear(1, 1)
    clock.start_forward(model, ())
    clock.start_forward(model.eval(), ())
    clock.start_iteration(7)
    assert (clock.forwards, clock.iterations, clock.iteration) == (1, 1, 7)


def test_the_backward_is_known():
    seen = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda grad: seen.append(in_backward()))
    assert not in_backward()
    (2 * x).backward()
    assert seen == [True]
    assert not in_backward()


@pytest.mark.skipif(not HAS_CUSTOM_OPS, reason='an operator since torch 2.4')
def test_the_operator_of_a_graph_draws_the_same_noise(monkeypatch):
    perturbation, quantizer = make(p=1.0)
    x = torch.rand(3, 5) * 3
    plain = perturbation(x, quantizer)
    monkeypatch.setattr(
        'fpq_plugin.perturbation.is_compiling', lambda: True)
    perturbation.clock.start_iteration(0)
    assert torch.equal(perturbation(x, quantizer), plain)
    assert not torch.equal(plain, quantizer(x))


def test_noise_is_drawn_in_the_steps_type():
    """A narrow tensor gets the noise of a wide one, rounded once."""
    perturbation = StochasticFeaturePerturbation(p=1.0)
    step, key = torch.tensor([0.3]), 7
    wide = perturbation.perturb(torch.zeros(100), step, key)
    narrow = perturbation.perturb(
        torch.zeros(100, dtype=torch.bfloat16), step, key)
    assert narrow.dtype is torch.bfloat16
    assert torch.equal(narrow, wide.to(torch.bfloat16))


@pytest.mark.parametrize(('granularity', 'chosen'), [
    ('call', (True, True, True)), ('sample', None)])
def test_a_key_names_the_same_noise_in_every_release(granularity, chosen):
    """Resumed by a newer release, a run goes on with its noise."""
    key = 2**61
    perturbation, _ = make(p=0.5, granularity=granularity)
    generator = torch.Generator().manual_seed(mix(key, 1))
    noise = 0.25 * (torch.rand(3, 4, generator=generator) - 0.5)
    if chosen is None:
        draws = torch.rand(3, generator=torch.Generator().manual_seed(
            mix(key, 2)))
        chosen = (draws < 0.5).tolist()
        assert len(set(chosen)) == 2
    x = torch.ones(3, 4)
    out = perturbation.perturb(x, torch.tensor([0.25]), key)
    wanted = x + noise * torch.tensor(chosen)[:, None]
    torch.testing.assert_close(out, wanted)
