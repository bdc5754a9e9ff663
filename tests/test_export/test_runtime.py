"""onnxruntime, with sums beyond 16 bits; a file held against its engine."""

import re
from importlib.util import find_spec

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exported_models import net, quantized
from torch import nn

from fpq_plugin.export import export_onnx, runtime
from fpq_plugin.export.build import build_onnx
from fpq_plugin.export.onnx_file import check_onnx
from fpq_plugin.export.runtime import (
    multiplies_wrongly,
    open_in_openvino,
    open_session,
    opener_of,
    refuse_unfit_for,
    saturates,
)
from fpq_plugin.targets import ONNXRUNTIME, OPENVINO, STANDARD, TENSORRT


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.rand(32, 8, 6, 6)


@pytest.fixture
def model(x):
    """A layer of each integer kernel, with sums that pass 16 bits."""
    layers = nn.Sequential(
        nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
        nn.Flatten(2), nn.Linear(4, 64, bias=False), nn.ReLU(),
        nn.Linear(64, 64), nn.Flatten(), nn.Linear(32 * 64, 7))
    return quantized(layers, x, weight=dict(bits=8), activation=dict(bits=8))


def test_unsigned_weights_are_right_on_every_processor(model, x, tmp_path):
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], unsigned_weights=True)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.UINT8 in kinds
    assert onnx.TensorProto.INT8 not in kinds
    assert report.parity.mean_difference < 1e-3 * report.parity.spread


def test_signed_ones_are_where_it_does_not_saturate(model, x):
    content = ir.to_proto(build_onnx(model, x[:2])).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry('session.x64quantprecision', '1')
    session = onnxruntime.InferenceSession(content, options)
    with torch.no_grad():
        expected = model(x)
    found = open_session(content)(x)
    precise = torch.from_numpy(session.run(None, {'input': x.numpy()})[0])
    far, near = ((each - expected).abs().mean() / expected.std()
                 for each in (found, precise))
    assert saturates() == (far > 0.01)
    assert near < 1e-3


def test_unpacked_weights_answer_the_same(model, x):
    content = ir.to_proto(
        build_onnx(model, x[:2], unsigned_weights=True)).SerializeToString()
    packed, unpacked = (open_session(content, unpack)(x)
                        for unpack in (False, True))
    assert (packed - unpacked).abs().mean() < 1e-3 * packed.std()


@pytest.mark.parametrize(('weight', 'activation', 'fault'), [
    (dict(bits=8), dict(bits=8), 'QuantizeLinear with a zero point other'),
    (dict(bits=4), dict(bits=8, symmetric=True),
     'DequantizeLinear with integers of INT4'),
    (dict(bits=8), dict(bits=8, symmetric=True),
     'DequantizeLinear with integers of INT32')])
def test_a_file_of_another_engine_is_told(weight, activation, fault):
    """By the file alone."""
    x = torch.randn(40, 3, 8, 8)
    model = quantized(net(), x, weight=weight, activation=activation,
                      first_last_bits=None)
    built = build_onnx(model, x)
    refuse_unfit_for(STANDARD, built)
    with pytest.raises(ValueError, match=f'TensorRT takes no {fault}'):
        refuse_unfit_for(TENSORRT, built)


@pytest.mark.skipif(not find_spec('openvino'), reason='needs openvino')
@pytest.mark.parametrize('bits', [4, 8])
def test_a_file_for_openvino_is_run_in_it(bits, x, tmp_path):
    layers = nn.Sequential(
        nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU6(),
        nn.Flatten(), nn.Linear(32 * 4, 7))
    model = quantized(layers, x, weight=dict(bits=bits),
                      activation=dict(bits=bits))
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], target='openvino')
    with torch.no_grad():
        expected = model(x)
    found = open_in_openvino(path.read_bytes())(x)
    assert (found - expected).abs().mean() < 0.01 * expected.std()
    assert [each.unpacked_seconds for each in report.latencies] == [None] * 2
    text = str(report)
    assert 'not run in it' not in text
    assert 'ms, batch 1' in text
    assert 'unpacked' not in text


def test_without_its_engine_a_file_is_checked(x, monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, 'find_spec', lambda name: None)
    assert opener_of(STANDARD) is opener_of(ONNXRUNTIME) is open_session
    assert opener_of(TENSORRT) is opener_of(OPENVINO) is None
    model = quantized(nn.Sequential(nn.Conv2d(8, 4, 3)), x)
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, None)],
                         target='openvino')
    assert 'the rules of OpenVINO, and not run in it' in str(report)


@pytest.mark.parametrize('unpack', [False, True])
def test_sessions_that_are_timed_in_turn_leave_the_cores(model, x, unpack,
                                                         monkeypatch):
    """Or one's waiting threads make the next one slow, and ratios wrong."""
    content = ir.to_proto(build_onnx(model, x)).SerializeToString()
    opened = []

    class Session(onnxruntime.InferenceSession):

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            opened.append(self.get_session_options())

    monkeypatch.setattr(onnxruntime, 'InferenceSession', Session)
    runtime.open_session(content, unpack)
    assert opened[0].get_session_config_entry(
        'session.force_spinning_stop') == '1'


def test_this_onnxruntime_multiplies_rightly():
    assert not multiplies_wrongly()


def test_one_that_does_not_is_refused_before_anything(model, x, tmp_path,
                                                      monkeypatch):
    """As 1.21 to 1.24 on processors with AMX."""
    monkeypatch.setattr(runtime, 'multiplies_wrongly', lambda: True)
    path = tmp_path / 'model.onnx'
    with pytest.raises(ImportError, match=re.escape(
            f'onnxruntime {onnxruntime.__version__} multiplies integers '
            'wrongly on this processor')):
        export_onnx(model, path, [(x, None)])
    with pytest.raises(ImportError, match="pip install 'onnxruntime>=1.25'"):
        check_onnx(model, x)
    assert not list(tmp_path.iterdir())
    # Elsewhere the file is computed in float here.
    assert export_onnx(quantized(net(), torch.rand(8, 3, 8, 8),
                                 activation=dict(symmetric=True)), path,
                       [(torch.rand(8, 3, 8, 8), None)],
                       target='tensorrt').parity.images == 8


def test_products_are_found_wrong_where_they_are(monkeypatch):
    right = open_session

    def wrong(model, unpack=False):
        run = right(model, unpack)

        def answer(x):
            found = run(x).clone()
            found[-1, 16] += 1
            return found

        return answer

    multiplies_wrongly.cache_clear()
    monkeypatch.setattr(runtime, 'open_session', wrong)
    try:
        assert multiplies_wrongly()
    finally:
        multiplies_wrongly.cache_clear()
