"""Brevitas's own exports take a model of this backend."""

import copy

import onnx
import onnxruntime
import torch
from brevitas.export import export_onnx_qcdq, export_qonnx
from torch import nn

from fpq_plugin import calibrate, convert
from fpq_plugin._compat.versions import onnx_tracer_options


def test_both_formats(tmp_path):
    """Six quantizers each; onnxruntime runs the one it knows."""
    torch.manual_seed(0)
    x = torch.rand(8, 1, 10, 10)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(8 * 36, 5))
    convert(model, backend='brevitas', weight=dict(bits=4),
            activation=dict(bits=4), perturbation=dict(p=1.0),
            # Weights of 8 bits saturate in onnxruntime without VNNI.
            first_last_bits=7)
    calibrate(model, [x])
    model.eval()
    kinds = {}
    for export in (export_qonnx, export_onnx_qcdq):
        path = str(tmp_path / f'{export.__name__}.onnx')
        export(copy.deepcopy(model), args=x, export_path=path,
               **onnx_tracer_options())
        kinds[export] = [n.op_type for n in onnx.load(path).graph.node]
    assert kinds[export_qonnx].count('Quant') == 6
    assert kinds[export_onnx_qcdq].count('DequantizeLinear') == 6
    session = onnxruntime.InferenceSession(path)
    found, = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert (torch.from_numpy(found) - model(x)).abs().max() < 1e-5
