"""ONNX QCDQ through Brevitas, run in onnxruntime."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from runs import ROOT, train
from torch import nn

from brevitas_adapters import export_qcdq
from fpq_plugin import calibrate, convert


def model_of(**options):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU(),
        nn.Conv2d(8, 4, 1, groups=2), nn.Flatten(), nn.Linear(4 * 16, 5))
    convert(model, backend='brevitas', **options)
    x = torch.randn(16, 3, 8, 8)
    calibrate(model, [x])
    model(x)  # batch norm statistics
    return model, x


def run(path, x):
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {'input': x.numpy()})[0]


@pytest.mark.parametrize('options', [
    dict(),
    dict(weight=dict(bits=2), activation=dict(bits=3)),
    dict(weight=dict(type='Int8WeightPerChannelFloat', bits=4),
         activation=dict(type='ShiftedUint8ActPerTensorFloat', bits=4)),
    dict(weight=dict(type='Int8WeightPerTensorFloat', bits=4),
         activation=dict(type='Uint8ActPerTensorFloat', bits=4)),
    dict(activation=None),
], ids=['lsq', 'lsq_w2a3', 'shifted', 'unsigned', 'weights_only'])
def test_the_file_answers_as_the_model(options, tmp_path):
    """SFP is on in the model, and has no part in the file."""
    model, x = model_of(perturbation=dict(p=1.0), **options)
    path = tmp_path / 'model.onnx'
    export_qcdq(model, x[:1], path)
    assert model.training
    model.eval()
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(run(path, x), expected, atol=1e-5)
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    quantized = 0 if options.get('activation', 1) is None else 4
    assert kinds['QuantizeLinear'] == quantized
    assert kinds['DequantizeLinear'] == quantized + 4


def test_weights_are_integers_of_their_bits(tmp_path):
    model, x = model_of(weight=dict(bits=3), first_last_bits=None)
    export_qcdq(model, x, tmp_path / 'model.onnx')
    graph = onnx.load(tmp_path / 'model.onnx').graph
    tensors = [onnx.numpy_helper.to_array(t) for t in graph.initializer]
    tensors += [onnx.numpy_helper.to_array(node.attribute[0].t)
                for node in graph.node if node.op_type == 'Constant']
    integers = [t for t in tensors if t.dtype == np.int8 and t.ndim > 1]
    assert len(integers) == 4
    for tensor, layer in zip(integers, (model[0], model[3], model[5],
                                        model[7])):
        assert -4 <= tensor.min() <= tensor.max() <= 3
        scale = layer.weight_quantizer.step().view(-1, *[1] * (
            tensor.ndim - 1))
        torch.testing.assert_close(
            torch.from_numpy(tensor) * scale,
            layer.quant_weight().value.detach())


def test_a_model_without_scales_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    convert(model, backend='brevitas')
    with pytest.raises(ValueError, match='no scales yet for 0.weight_quanti'):
        export_qcdq(model, torch.randn(1, 4), tmp_path / 'model.onnx')


def test_a_failed_export_leaves_the_model_as_it_was(tmp_path):
    model, x = model_of()
    expected = model.eval()(x)
    with pytest.raises(Exception, match='No such file|nowhere|directory'):
        export_qcdq(model, x, tmp_path / 'nowhere/model.onnx')
    assert torch.equal(model(x), expected)
    model.train()(x).sum().backward()


def test_the_tool_on_checkpoints_of_both_backends(fpq_config, tmp_path):
    cfg = fpq_config()
    train(cfg)
    cfg.dump(str(tmp_path / 'config.py'))
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/export_qcdq.py',
         tmp_path / 'config.py', tmp_path / 'run/epoch_1.pth',
         tmp_path / 'model.onnx'],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout[done.stdout.index('{'):])
    assert figures['images'] == 397
    assert figures['top1_torch'] == pytest.approx(figures['top1_onnx'],
                                                  abs=0.3)
    assert figures['other_class'] <= 1
    assert figures['images_with_equal_logits'] >= 390
