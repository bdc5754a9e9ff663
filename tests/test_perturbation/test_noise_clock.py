"""The key of a draw: a function of its place, and of nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin.perturbation import NoiseClock, in_backward, mix

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
