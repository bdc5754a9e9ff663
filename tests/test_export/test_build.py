"""The traced model: what is in it, and what training leaves."""

import onnx_ir as ir
import pytest
import torch
from exported_models import net, quantized
from torch import nn

from fpq_plugin.export.build import (
    build_float_onnx,
    build_onnx,
    trace_model,
)
from fpq_plugin.export.exportable import quantizers_of
from fpq_plugin.export.runtime import open_session
from fpq_plugin.export.tracing import trace


@pytest.fixture
def x():
    return torch.randn(7, 3, 8, 8)


@pytest.fixture
def model(x):
    return quantized(net(), x)


def test_every_quantizer_is_marked_with_its_number(model, x):
    quantizers = list(quantizers_of(model).values())
    assert len(quantizers) == 8
    proto = trace(model, quantizers, x[:2])
    marks = [node for node in proto.graph.node if node.domain == 'fpq']
    assert {node.op_type for node in marks} == {'FakeQuantize'}
    assert sorted(node.attribute[0].i for node in marks) == list(range(8))
    # The quantizers are themselves again.
    assert all('forward' not in vars(each) for each in quantizers)


def test_quantizers_are_back_after_a_trace_that_fails(x):

    class Refuses(nn.Module):

        def forward(self, x):
            if torch.onnx.is_in_onnx_export():
                raise RuntimeError('cannot be traced')
            return x

    model = nn.Sequential(quantized(net(), x), Refuses())
    quantizers = list(quantizers_of(model).values())
    with pytest.raises(ValueError, match='cannot trace Sequential: cannot be'):
        trace(model, quantizers, x[:2])
    assert all('forward' not in vars(each) for each in quantizers)


def test_the_float_model_is_the_model_without_quantizers(model, x):
    built = build_float_onnx(trace_model(model, x))
    kinds = {node.op_type for node in built.graph}
    assert not kinds & {'FakeQuantize', 'QuantizeLinear', 'DequantizeLinear'}
    plain = net().eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        expected = plain(x)
    found = open_session(ir.to_proto(built).SerializeToString())(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(('bits', 'opset', 'ir_version'),
                         [(4, 21, 10), (8, 17, 8)])
def test_the_opset_is_the_first_that_has_the_types(bits, opset, ir_version,
                                                   x):
    model = quantized(net(), x, weight=dict(bits=bits))
    built = build_onnx(model, x[:2])
    assert built.opset_imports == {'': opset}
    assert built.ir_version == ir_version
