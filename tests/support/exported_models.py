"""Quantized models to export, and how their files are read and run."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn

from fpq_plugin import calibrate, convert
from fpq_plugin.export.runtime import saturates

# How 8-bit weights are stored on this processor.
EIGHT, ZERO_POINT = ('UINT8', 128) if saturates() else ('INT8', 0)


def quantized(model, x, **options):
    """``model`` converted, calibrated on ``x``, in eval mode."""
    convert(model, perturbation=dict(p=1.0), **options)
    calibrate(model, [x])
    return model.eval()


def net():
    """A model for (N, 3, 8, 8) with the usual layers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
        nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8, stride=2), nn.ReLU(),
        nn.Conv2d(8, 4, 1, groups=2), nn.Flatten(), nn.Linear(4 * 9, 5))


def batch_norm(channels, generator):
    """One with gains of any sign, and a zero."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(channels, generator=generator))
        norm.running_var.copy_(
            torch.rand(channels, generator=generator) + 0.1)
        norm.weight[0] = 0
    return norm


def answers(path, x):
    """What onnxruntime answers to ``x``."""
    session = onnxruntime.InferenceSession(
        path, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {'input': x.numpy()})[0])


def weights_of(path):
    """The stored weights of a file: integers, and the names of the types."""
    stored = [
        node.inputs[0].const_value for node in ir.load(path).graph
        if node.op_type == 'DequantizeLinear'
        and node.inputs[0].is_initializer()
    ]
    return ([tensor.numpy().astype(np.int64) for tensor in stored],
            [tensor.dtype.name for tensor in stored])


def assert_same(found, expected, atol=1e-5):
    """All but a value in a thousand, which a rounding edge may shift."""
    far = (found - expected).abs() > atol * (1 + expected.abs().max())
    assert far.double().mean() <= 1e-3


class JointNet(nn.Module):
    """A residual block for (N, 3, 8, 8) that can quantize its joints.

    Quantizers of layers stand there, each on several places, and twice in a
    row, as they do where one tensor has several readers.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first, self.second = (
            nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(8 * 16, 5)
        self.wide = self.signed = nn.Identity()

    def quantize_joints(self):
        """From here on, after it has been calibrated."""
        self.wide = self.first.input_quantizer
        self.signed = self.second.input_quantizer
        self.head.input_quantizer = self.wide

    def forward(self, x):
        x = self.wide(nn.functional.max_pool2d(
            torch.relu(self.norm(self.stem(x))), 2))
        y = self.signed(self.second(torch.relu(self.first(x))))
        x = self.wide(self.wide(torch.relu(x + y)))
        return self.head(self.wide(x.flatten(1)))
