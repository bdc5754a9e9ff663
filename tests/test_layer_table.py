"""The table: every weight has a row and a reason, and counts in bytes."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fpq_plugin import convert


class Holder(nn.Module):
    """A layer under test, beside two that are quantized."""

    def __init__(self, layer):
        super().__init__()
        self.a, self.inner, self.b = nn.Linear(4, 4), layer, nn.Linear(4, 2)


class Mixing(nn.Module):
    """A weight under another name; a scale of one axis."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.ones(3, 5))
        self.scale = nn.Parameter(torch.ones(5))


class Projecting(nn.Module):
    """A fixed weight, beside what is none."""

    def __init__(self):
        super().__init__()
        self.register_buffer('basis', torch.ones(3, 5))
        self.register_buffer('index', torch.ones(3, 5, dtype=torch.long))
        self.register_buffer('mean', torch.ones(5))
        self.register_buffer('cache', torch.ones(3, 5), persistent=False)


LAYERS = {
    'lstm': (lambda: nn.LSTM(4, 8, bidirectional=True, proj_size=3),
             lambda m: [p for p in m.parameters() if p.dim() > 1]),
    'gru': (lambda: nn.GRU(4, 8), lambda m: [m.weight_ih_l0, m.weight_hh_l0]),
    'cell': (lambda: nn.LSTMCell(4, 8), lambda m: [m.weight_ih, m.weight_hh]),
    'bilinear': (lambda: nn.Bilinear(3, 4, 5), lambda m: [m.weight]),
    'embedding': (lambda: nn.Embedding(7, 4), lambda m: [m.weight]),
    'bag': (lambda: nn.EmbeddingBag(7, 4), lambda m: [m.weight]),
    'own': (Mixing, lambda m: [m.mix]),
    'fixed': (Projecting, lambda m: [m.basis]),
    'pruned': (lambda: prune.random_unstructured(
        nn.Bilinear(3, 4, 5), 'weight', 0.5), lambda m: [m.weight]),
    'normed': (lambda: nn.utils.weight_norm(nn.Bilinear(3, 4, 5)),
               lambda m: [m.weight]),
    'new_normed': (lambda: parametrizations.weight_norm(nn.Bilinear(3, 4, 5)),
                   lambda m: [m.weight]),
    'bias_of_keys': (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
                     lambda m: [m.bias_k, m.bias_v]),
    'list': (lambda: nn.ParameterList([torch.ones(2, 3)]),
             lambda m: [m[0]]),
    'norm': (lambda: nn.BatchNorm2d(4), lambda m: []),
}


@pytest.mark.parametrize('case', LAYERS.values(), ids=LAYERS)
def test_what_stays_float_is_told_and_counted(case, backend):
    make, weights = case
    model = Holder(make())
    expected = sorted(tuple(w.shape) for w in weights(model.inner))
    table = convert(model, backend=backend)
    rows = [r for r in table if r.name.startswith('inner')
            and r not in table.quantized()]
    assert sorted(r.shape for r in rows) == expected
    assert all('not registered' in r.why for r in rows)
    quantized = sum(torch.Size(r.shape).numel() * r.weight_bits / 8
                    for r in table.quantized())
    assert table.weight_bytes() == quantized + 4 * sum(
        w.numel() for w in weights(model.inner))
    assert 'inner' in str(table) or not expected


def test_a_parameter_has_its_full_name():
    table = convert(Holder(nn.GRU(4, 8)))
    assert [(r.name, r.type) for r in table][1:3] == [
        ('inner.weight_ih_l0', 'GRU'), ('inner.weight_hh_l0', 'GRU')]
    assert 'torch.nn.modules.rnn.GRU not registered' in table[1].why


def test_a_layer_that_holds_modules_says_which():
    layer = nn.Linear(4, 4)
    layer.__class__ = type('Adapted', (nn.Linear, ), {})
    layer.low_rank = nn.Linear(4, 4)
    rows = {r.name: r.why for r in convert(Holder(layer))}
    assert rows['inner'].endswith('not registered, and it holds low_rank')


def test_a_shared_parameter_is_one_row():
    model = Holder(nn.ModuleList([Mixing(), Mixing()]))
    model.inner[1].mix = model.inner[0].mix
    assert [r.name for r in convert(model)] == ['a', 'inner.0.mix', 'b']


def test_reading_a_power_iterated_weight_makes_no_step():
    norm = parametrizations.spectral_norm(nn.Bilinear(3, 4, 5)).train()
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    table = convert(Holder(norm))
    assert all(torch.equal(v, before[k])
               for k, v in norm.state_dict().items())
    assert table[1].shape == (5, 3, 4)
