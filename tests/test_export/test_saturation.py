"""8-bit weights where sums of products pass the kernels' 16 bits."""

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin import calibrate, convert
from fpq_plugin.export import export_onnx
from fpq_plugin.export.build import build_onnx
from fpq_plugin.export.integers import Integers, carrier
from fpq_plugin.export.runtime import open_session, saturates


def wide():
    """A layer of each integer kernel, with sums that pass 16 bits."""
    torch.manual_seed(0)
    x = torch.rand(32, 8, 6, 6)
    model = nn.Sequential(
        nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
        nn.Flatten(2), nn.Linear(4, 64, bias=False), nn.ReLU(),
        nn.Linear(64, 64), nn.Flatten(), nn.Linear(32 * 64, 7))
    convert(model, weight=dict(bits=8), activation=dict(bits=8))
    calibrate(model, [x])
    return model.eval(), x


def test_unsigned_weights_are_right_on_every_processor(tmp_path):
    model, x = wide()
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], unsigned_weights=True)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.UINT8 in kinds
    assert onnx.TensorProto.INT8 not in kinds
    assert report.parity.mean_difference < 1e-3 * report.parity.spread


def test_signed_ones_are_where_it_does_not_saturate():
    model, x = wide()
    proto = build_onnx(model, x[:2])
    with torch.no_grad():
        expected = model(x)
        found = open_session(proto.SerializeToString())(x)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry('session.x64quantprecision', '1')
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options)
        mended = torch.from_numpy(
            session.run(None, {'input': x.numpy()})[0])
    far, near = ((each - expected).abs().mean() / expected.std()
                 for each in (found, mended))
    assert saturates() == (far > 0.01)
    assert near < 1e-3


@given(st.integers(-128, -1), st.integers(0, 127))
def test_what_may_saturate_is_what_two_products_say(low, high):
    zero = np.zeros(())
    numbers = Integers(zero, zero, low, high, None, carrier(low, high, True))
    sums = [2 * 255 * low, 2 * 255 * high]
    fits = all(-2**15 <= total < 2**15 for total in sums)
    # -64 fits, and so does what a batch norm makes of it.
    assert numbers.may_saturate() != fits
