"""torch's fused transformer layers never run around quantized ones."""

import copy
import functools

import pytest
import torch
from torch import nn

import fpq_plugin
from fpq_plugin import calibrate, to_float


@pytest.fixture
def convert(backend):
    return functools.partial(
        fpq_plugin.convert, backend=backend, weight=dict(bits=8),
        activation=dict(bits=8))


class Encoder(nn.TransformerEncoder):
    """A subclass."""


class OwnEncoder(nn.TransformerEncoder):
    """A subclass with a forward of its own."""

    def forward(self, src, src_key_padding_mask=None):
        return super().forward(src, None, src_key_padding_mask)


class Attention(nn.MultiheadAttention):
    """A subclass."""


class OwnAttention(nn.MultiheadAttention):
    """A subclass with a forward of its own."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def layer(**options):
    return nn.TransformerEncoderLayer(
        16, 2, 32, batch_first=True, **options)


def with_attention(kind):
    made = layer()
    made.self_attn = kind(16, 2, batch_first=True)
    return nn.TransformerEncoder(made, 2)


ENCODERS = {
    'plain': lambda: nn.TransformerEncoder(layer(), 2),
    'gelu': lambda: nn.TransformerEncoder(layer(activation='gelu'), 2),
    'norm': lambda: nn.TransformerEncoder(layer(), 2, nn.LayerNorm(16)),
    'norm_first': lambda: nn.TransformerEncoder(layer(norm_first=True), 2),
    'subclass': lambda: Encoder(layer(), 2),
    'own_forward': lambda: OwnEncoder(layer(), 2),
    'attention_subclass': lambda: with_attention(Attention),
    'attention_own_forward': lambda: with_attention(OwnAttention),
}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    return ENCODERS[request.param]()


@pytest.fixture
def x():
    return torch.randn(3, 5, 16)


@pytest.fixture
def padding():
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    return padding


def one_by_one(encoder, x, padding):
    for each in encoder.layers:
        x = each(x, src_key_padding_mask=padding)
    return x if encoder.norm is None else encoder.norm(x)


@pytest.mark.parametrize('skip', [[], ['layers.0'], ['*.self_attn']])
def test_an_encoder_answers_as_its_layers_do(convert, encoder, x, padding,
                                             skip):
    plain = copy.deepcopy(encoder).eval()
    convert(encoder, skip=skip)
    calibrate(encoder, [x], lambda m, batch: m(
        batch, src_key_padding_mask=padding))
    encoder.eval()
    with torch.no_grad():
        out = encoder(x, src_key_padding_mask=padding)
        expected = one_by_one(encoder, x, padding)
        near = one_by_one(plain, x, padding)
    torch.testing.assert_close(out[~padding], expected[~padding])
    slow = encoder(x, src_key_padding_mask=padding)  # with gradients
    torch.testing.assert_close(out[~padding], slow[~padding])
    assert (out - near)[~padding].abs().max() < 0.2
    assert not torch.equal(out[~padding], near[~padding])


def test_an_encoder_is_what_it_was(convert, encoder, x, padding):
    encoder.eval()
    nested, kind = encoder.use_nested_tensor, type(encoder)
    kinds = [type(m) for m in encoder.modules()]
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=padding)
    names = set(vars(encoder))
    convert(encoder)
    to_float(encoder)
    assert encoder.use_nested_tensor is nested
    assert (type(encoder), set(vars(encoder))) == (kind, names)
    assert [type(m) for m in encoder.modules()] == kinds
    with torch.no_grad():
        assert torch.equal(encoder(x, src_key_padding_mask=padding), expected)


def test_a_decoder_answers_in_eval_as_with_gradients(convert, x, padding):
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 2)
    convert(decoder)
    run = functools.partial(decoder, memory_key_padding_mask=padding,
                            tgt_key_padding_mask=padding)
    calibrate(decoder, [(x, 2 * x)], lambda m, batch: run(*batch))
    decoder.eval()
    with torch.no_grad():
        out = run(x, 2 * x)
    torch.testing.assert_close(out, run(x, 2 * x))


@pytest.mark.parametrize('kind', [Attention, OwnAttention])
def test_a_subclass_of_attention_is_quantized(convert, kind, x):
    model = kind(16, 2, batch_first=True)
    plain = copy.deepcopy(model).eval()
    table = convert(model)
    assert {r.name: r.weight_bits for r in table} == dict(
        out_proj=8, in_projection=8)
    calibrate(model, [(x, x, x)])
    model.eval()
    with torch.no_grad():
        out = model(x, x, x, need_weights=False)[0]
        near = plain(x, x, x)[0]
    torch.testing.assert_close(out, model(x, x, x)[0])
    assert 0 < (out - near).abs().max() < 0.02
    assert type(to_float(model)) is kind
