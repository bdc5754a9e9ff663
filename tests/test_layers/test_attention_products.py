"""The option ``attention``: the operands of q k^T and attn v."""

import functools

import pytest
import torch
from mmpretrain.models.backbones.mixmim import MixMIMWindowAttention
from mmpretrain.models.backbones.xcit import XCA
from mmpretrain.models.utils.attention import (
    BEiTAttention,
    LeAttention,
    MultiheadAttention,
    WindowMSA,
    WindowMSAV2,
)
from torch import nn
from torch.nn import functional as F

import fpq_plugin
from fpq_plugin import calibrate, to_float
from fpq_plugin.layers import AttentionProducts
from fpq_plugin.layers.attention_products import attend


@pytest.fixture
def convert(backend):
    return functools.partial(
        fpq_plugin.convert, first_last_bits=None, backend=backend)


class Torch(nn.Module):

    def __init__(self, need_weights):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        return self.attn(x, x, x, need_weights=self.need_weights)[0]


MODULES = {
    'torch': lambda: Torch(True),
    'torch_fused': lambda: Torch(False),
    'fused': lambda: MultiheadAttention(8, 2),
    'window': lambda: WindowMSA(8, (2, 2), 2),
    'window_v2': lambda: WindowMSAV2(8, (2, 2), 2),
    'beit': lambda: BEiTAttention(8, 2, None, False),
    'le': lambda: LeAttention(8, 4, 2, resolution=(2, 2)),
    'xca': lambda: XCA(8, 2),
    'mixmim': lambda: MixMIMWindowAttention(8, (2, 2), 2),
}


@pytest.fixture(params=MODULES)
def model(request):
    model = nn.Sequential(MODULES[request.param]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


def test_both_products_have_operands_on_their_grids(convert, model):
    x = torch.randn(6, 4, 8)
    kind = type(model[0])
    keys, expected = list(model.state_dict()), model(x)
    table = convert(model, weight=dict(bits=8), activation=dict(bits=8),
                    attention=dict(bits=3))
    row = table[-1]
    assert (row.type, row.activation_bits) == ('AttentionProducts', 3)
    assert [r for r in table if r.type == 'AttentionProducts'] == [row]
    calibrate(model, [x], warn=pytest.fail)
    products, = (m for m in model.modules()
                 if isinstance(m, AttentionProducts))
    seen = []
    for name, quantizer in products.named_children():
        quantizer.register_forward_hook(
            lambda _, args, out, name=name: seen.append((name, out)))
    out = model(x)
    assert [name for name, _ in seen] == ['query', 'key', 'weights', 'value']
    assert all(2 < value.unique().numel() <= 8 for _, value in seen)
    assert not torch.equal(out, expected)
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in products.parameters())
    to_float(model)
    assert type(model[0]) is kind
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model.eval()(x), expected)


def test_at_8_bits_the_products_are_nearly_the_float_ones(convert, model):
    x = torch.randn(6, 4, 8)
    expected = model(x)
    convert(model, weight=None, activation=None, attention=dict(bits=8),
            overrides={'*': dict(weight=dict(bits=8))})
    calibrate(model, [x])
    error = (model(x) - expected).square().mean() / expected.var()
    assert 0 < error < 0.01


@pytest.mark.parametrize('options', [
    {}, dict(is_causal=True), dict(scale=0.3),
    dict(attn_mask=torch.eye(5).bool() | (torch.arange(5) < 2)),
    dict(attn_mask=torch.randn(5, 5)),
])
def test_the_fused_function_is_taken_apart_right(options):
    """With quantizers that do nothing it is torch's own result."""
    from fpq_plugin.layers.attention_products import ProductCalls
    products = AttentionProducts(*(nn.Identity() for _ in range(4)))
    calls = ProductCalls(products)
    qkv = torch.randn(3, 2, 4, 5, 6)
    function = F.scaled_dot_product_attention
    assert calls.takes(function, tuple(qkv))
    torch.testing.assert_close(
        calls(function, tuple(qkv), options), function(*qkv, **options))


def test_weights_are_returned_and_dropped_on_request():
    q, k, v = torch.randn(3, 2, 4, 5, 6)
    out, weights = attend(q, k, v, None, 0.0, True, None)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    torch.testing.assert_close(out, weights @ v)
    _, dropped = attend(q, k, v, None, 0.5, True, None)
    assert (dropped == 0).any()


def test_skip_and_bad_options(convert, model):
    with pytest.raises(ValueError, match='attention.bits: must be'):
        convert(model, attention=dict(bits=1))
    with pytest.raises(ValueError, match="attention: unknown option 'bit'"):
        convert(model, attention=dict(bit=4))
    model = nn.Sequential(model, nn.Linear(8, 8))
    convert(model, attention=dict(bits=4), skip=['0'])
    assert not any(isinstance(m, AttentionProducts) for m in model.modules())
