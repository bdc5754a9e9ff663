"""nn.MultiheadAttention: torch's own numbers, and quantized projections."""

import copy
import functools

import pytest
import torch
from torch import nn

import fpq_plugin
from fpq_plugin import CSDLoss, Distiller, calibrate, to_float
from fpq_plugin.layers import quantized_layers, route, unroute


@pytest.fixture
def convert(backend):
    return functools.partial(
        fpq_plugin.convert, first_last_bits=None, backend=backend)


OPTIONS = {
    'plain': {},
    'batch_first': dict(batch_first=True),
    'three_weights': dict(kdim=6, vdim=10),
    'bias_kv': dict(add_bias_kv=True),
    'zero_attn': dict(add_zero_attn=True),
    'no_bias': dict(bias=False),
}
LENGTH, KEYS, BATCH, HEADS = 5, 7, 3, 2


class Call(nn.Module):
    """An attention as a model: self-, encoder-decoder or free attention."""

    def __init__(self, kind='self', **options):
        super().__init__()
        self.kind = kind
        self.attn = nn.MultiheadAttention(8, HEADS, **options)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def inputs(self):
        first = self.attn.batch_first
        sizes = [(LENGTH, 8)]
        if self.kind == 'memory':
            sizes += [(KEYS, 8)]
        if self.kind == 'free':
            sizes += [(KEYS, self.attn.kdim), (KEYS, self.attn.vdim)]
        return [torch.randn(BATCH, n, c) if first else
                torch.randn(n, BATCH, c) for n, c in sizes]

    def forward(self, query, key=None, value=None, **options):
        key = query if key is None else key
        return self.attn(query, key, key if value is None else value,
                         **options)


# Keys of another size are no queries.
CASES = [(kind, name) for kind in ('self', 'memory', 'free')
         for name in OPTIONS if kind == 'free' or name != 'three_weights']


@pytest.fixture(params=CASES, ids='-'.join)
def model(request):
    kind, name = request.param
    return Call(kind, **OPTIONS[name])


def masks(keys):
    """Options of the call: none, boolean, numbers, one for each head."""
    hide = torch.rand(LENGTH, keys) > 0.8
    hide[:, 0] = False
    pad = torch.rand(BATCH, keys) > 0.8
    pad[:, 0] = False
    numbers = torch.randn(BATCH * HEADS, LENGTH, keys)
    return [
        {}, dict(attn_mask=hide, key_padding_mask=pad),
        dict(attn_mask=hide, is_causal=True),
        dict(attn_mask=numbers, need_weights=False),
        dict(attn_mask=numbers[0], average_attn_weights=False),
        dict(key_padding_mask=pad, need_weights=False),
    ]


@pytest.mark.parametrize('training', [True, False])
def test_routed_it_computes_what_torch_does(model, training):
    other = copy.deepcopy(model)
    route(other)
    model.train(training), other.train(training)
    inputs = model.inputs()
    keys = LENGTH if model.kind == 'self' else KEYS
    for option in masks(keys):
        expected, weights = model(*inputs, **option)
        out, own = other(*inputs, **option)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        if weights is None:
            assert own is None
        else:
            torch.testing.assert_close(own, weights, rtol=1e-4, atol=1e-5)
    unroute(other)
    assert type(other.attn) is nn.MultiheadAttention
    assert vars(other.attn).keys() == vars(model.attn).keys()
    assert (other.attn._qkv_same_embed_dim
            == model.attn._qkv_same_embed_dim)


def test_unbatched_input():
    model = Call()
    other = copy.deepcopy(model)
    route(other)
    x, pad = torch.randn(LENGTH, 8), torch.tensor([False] * 4 + [True])
    for a, b in zip(model(x, key_padding_mask=pad),
                    other(x, key_padding_mask=pad)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_alone():
    model = Call(dropout=0.5)
    route(model)
    inputs = model.inputs()
    assert not torch.equal(model(*inputs)[0], model(*inputs)[0])
    model.eval()
    assert torch.equal(model(*inputs)[0], model(*inputs)[0])


def test_every_projection_is_quantized_and_distilled(convert, model):
    expected_keys = list(model.state_dict())
    teacher = copy.deepcopy(model)
    inputs = model.inputs()
    expected = model.eval()(*inputs)[0]
    convert(model, weight=dict(bits=8), activation=dict(bits=8))
    packed = model.attn.in_proj_weight is not None
    names = [f'attn.{n}_projection' for n in (['in'] if packed else 'qkv')]
    assert set(quantized_layers(model)) == {'attn.out_proj', *names}
    calibrate(model, [tuple(inputs)], warn=pytest.fail)
    out = model.eval()(*inputs)[0]
    assert not torch.equal(out, expected)
    error = (out - expected).square().mean() / expected.var()
    assert error < 0.02
    distiller = Distiller(model, teacher, CSDLoss(), warn=pytest.fail)
    out = model.train()(*inputs)[0]
    assert set(distiller.layer_losses()) == set(quantized_layers(model))
    (distiller.loss() + out.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    to_float(model)
    assert list(model.state_dict()) == expected_keys
    assert torch.equal(model.eval()(*inputs)[0], expected)


def test_bits_of_the_input_projection(convert):
    model = Call()
    table = convert(model, weight=dict(bits=2), activation=dict(bits=3))
    rows = {r.name: (r.type, r.weight_bits, r.activation_bits, r.shape)
            for r in table}
    assert rows == {
        'attn.in_projection': ('InProjection', 2, 3, (24, 8)),
        'attn.out_proj': ('NonDynamicallyQuantizableLinear', 2, 3, (8, 8)),
    }
    inputs = model.inputs()
    calibrate(model, inputs)
    layer = model.attn.in_projection
    weight = layer.quantized_weight(layer.weight)
    assert all(row.unique().numel() <= 4 for row in weight)
    assert layer.quantized_input(inputs[0]).unique().numel() <= 8
    assert model.attn.in_proj_weight is layer.weight


def test_skip_leaves_torchs_numbers(convert):
    model = nn.Sequential(Call(), nn.Linear(8, 8))
    inputs = model[0].inputs()
    expected = model[0](*inputs)[0]
    convert(model, skip=['0'])
    torch.testing.assert_close(model[0](*inputs)[0], expected)


def test_a_copy_has_its_own_attention(convert):
    """As EMA makes one."""
    model = Call()
    convert(model)
    calibrate(model, model.inputs())
    other = copy.deepcopy(model)
    assert other.attn.in_projection.weight is other.attn.in_proj_weight
    with torch.no_grad():
        other.attn.in_proj_weight.zero_()
    assert model.attn.in_projection.weight.abs().sum() > 0


@pytest.mark.parametrize('grad', [True, False])
def test_torchs_encoder_layer_uses_the_quantized_weights(convert, grad):
    """In eval mode torch's layer has a fused path past all modules."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = nn.Sequential(layer)
    x = torch.randn(2, 5, 8)
    convert(model, weight=dict(bits=2), activation=dict(bits=2))
    calibrate(model, [x], warn=pytest.fail)
    called = []
    for name, part in quantized_layers(model).items():
        part.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.set_grad_enabled(grad):
        model(x)
    assert set(called) == set(quantized_layers(model))
    assert len(called) == 4
