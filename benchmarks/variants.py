"""The training steps that step_time.py compares, as functions of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from peers import PEERS
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torch.ao.quantization._learnable_fake_quantize import (
    _LearnableFakeQuantize,
)
from torch.nn import functional as F
from train_step import TrainStep

import fpq_plugin
from fpq_plugin.layers import quantized_layers

Builder = Callable[[nn.Module, Tensor, Tensor], TrainStep]
SFP = dict(type='StochasticFeaturePerturbation', p=0.1)


class NaiveCSD(nn.Module):
    """CSD as one would first write it: standardized copies, autograd."""

    label = 'csd'
    last_layer_only = False

    def forward(self, student: Tensor, teacher: Tensor,
                channel_axis: int) -> Tensor:
        """Mean squared difference of the standardized maps."""
        channel_axis %= student.dim()
        dims = [d for d in range(student.dim()) if d != channel_axis]

        def standardize(z: Tensor) -> Tensor:
            var, mean = torch.var_mean(z, dims, correction=0, keepdim=True)
            return (z - mean) / torch.sqrt(var + 1e-5)

        return F.mse_loss(standardize(student), standardize(teacher))


def full_precision(model: nn.Module, x: Tensor, y: Tensor) -> TrainStep:
    """Forward and backward of the model as it is."""
    return TrainStep(copy.deepcopy(model), x, y)


def floor(model: nn.Module, x: Tensor, y: Tensor) -> TrainStep:
    """The same and a teacher's forward: what distillation must cost."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    return TrainStep(copy.deepcopy(model), x, y, teacher=teacher)


def fpq(perturbation: dict | None, criterion: nn.Module | None,
        target: str | None = None, **options):
    """LSQ with or without SFP and CSD; ``options`` are convert's."""

    def build(model: nn.Module, x: Tensor, y: Tensor) -> TrainStep:
        student = copy.deepcopy(model)
        fpq_plugin.convert(student, perturbation=perturbation, **options)
        if target is not None:
            fpq_plugin.add_joints(student, x, target)
        fpq_plugin.calibrate(student, [x])
        distiller = None
        if criterion is not None:
            distiller = fpq_plugin.Distiller(student, copy.deepcopy(model),
                                             criterion)
        return TrainStep(student, x, y, distiller)

    return build


def compiled(build: Builder) -> Builder:
    """The same step through ``torch.compile``."""
    return lambda model, x, y: build(model, x, y).compile()


def channels_last(build: Builder) -> Builder:
    """The same step in that memory format."""
    return lambda model, x, y: build(model, x, y).in_channels_last()


def torch_ao(quantizer: type[nn.Module]):
    """FPQ's layers with one of torch.ao's fake quantizers in them."""

    def build(model: nn.Module, x: Tensor, y: Tensor) -> TrainStep:
        student = copy.deepcopy(model)
        fpq_plugin.convert(student)
        layers = quantized_layers(student).values()
        for layer in layers:
            bits = layer.weight_quantizer.num_bits
            half, channels = 2**(bits - 1), layer.weight.shape[0]
            weight = dict(channel_len=channels)
            activation = dict()
            if quantizer is _LearnableFakeQuantize:
                weight['use_grad_scaling'] = True
                activation['use_grad_scaling'] = True
            else:
                del weight['channel_len']
            layer.weight_quantizer = quantizer(
                observer=MovingAveragePerChannelMinMaxObserver,
                quant_min=-half, quant_max=half - 1, dtype=torch.qint8,
                qscheme=torch.per_channel_symmetric, **weight)
            layer.input_quantizer = quantizer(
                observer=MovingAverageMinMaxObserver, quant_min=0,
                quant_max=2 * half - 1, dtype=torch.quint8,
                qscheme=torch.per_tensor_affine, **activation)
        student.to(x.device)
        if quantizer is _LearnableFakeQuantize:
            _learn_scales_from(student, layers, x)
        return TrainStep(student, x, y)

    return build


def brevitas(model: nn.Module, x: Tensor, y: Tensor) -> TrainStep:
    """Brevitas's stock W4A4: its layers with its default quantizers."""
    from brevitas import nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
    quantizers = dict(weight_quant=Int8WeightPerChannelFloat,
                      weight_bit_width=4, input_quant=Int8ActPerTensorFloat,
                      input_bit_width=4)

    def swapped(layer: nn.Module) -> nn.Module:
        bias = layer.bias is not None
        if isinstance(layer, nn.Conv2d):
            new = qnn.QuantConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size,
                layer.stride, layer.padding, layer.dilation, layer.groups,
                bias=bias, **quantizers)
        else:
            new = qnn.QuantLinear(layer.in_features, layer.out_features, bias,
                                  **quantizers)
        new.load_state_dict(layer.state_dict(), strict=False)
        return new

    student = copy.deepcopy(model)
    for module in list(student.modules()):
        for name, child in module.named_children():
            if type(child) in (nn.Conv2d, nn.Linear):
                setattr(module, name, swapped(child))
    student.to(x.device)
    student(x)  # starts the scales
    return TrainStep(student, x, y)


VARIANTS: dict[str, Builder] = {
    'FP': full_precision,
    'FP + teacher (floor)': floor,
    'LSQ': fpq(None, None),
    'LSQ + SFP': fpq(SFP, None),
    'LSQ + CSD': fpq(None, fpq_plugin.CSDLoss()),
    'FPQ': fpq(SFP, fpq_plugin.CSDLoss()),
    'FPQ, joints': fpq(SFP, fpq_plugin.CSDLoss(), 'onnxruntime'),
    'FPQ W8A8': fpq(SFP, fpq_plugin.CSDLoss(), weight=dict(bits=8),
                    activation=dict(bits=8)),
    'FPQ W8A8, joints': fpq(SFP, fpq_plugin.CSDLoss(), 'onnxruntime',
                            weight=dict(bits=8), activation=dict(bits=8)),
    'FPQ, naive CSD': fpq(SFP, NaiveCSD()),
    'LSQ, float weights': fpq(None, None, weight=None),
    'LSQ, Brevitas backend': fpq(None, None, backend='brevitas'),
    'FPQ, Brevitas backend': fpq(SFP, fpq_plugin.CSDLoss(),
                                 backend='brevitas'),
    'LSQ, torch native op': torch_ao(_LearnableFakeQuantize),
    'torch.ao FakeQuantize': torch_ao(FakeQuantize),
    'Brevitas W4A4': brevitas,
    **PEERS,
    'FP, compiled': compiled(full_precision),
    'floor, compiled': compiled(floor),
    'LSQ, compiled': compiled(fpq(None, None)),
    'FPQ, compiled': compiled(fpq(SFP, fpq_plugin.CSDLoss())),
    'FP, channels_last': channels_last(full_precision),
    'floor, channels_last': channels_last(floor),
    'LSQ, channels_last': channels_last(fpq(None, None)),
    'FPQ, channels_last': channels_last(fpq(SFP, fpq_plugin.CSDLoss())),
}


def _learn_scales_from(student: nn.Module, layers, x: Tensor) -> None:
    quantizers = [q for layer in layers
                  for q in (layer.weight_quantizer, layer.input_quantizer)]
    for quantizer in quantizers:
        quantizer.enable_static_estimate()
    with torch.no_grad():
        student(x)
    for quantizer in quantizers:
        quantizer.enable_param_learning()
