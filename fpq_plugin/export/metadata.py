"""What the file says of itself."""

from __future__ import annotations

import json

import onnx
import torch
from torch import nn

from ..layers import quantized_layers
from ..options import OFF_BITS
from ..version import __version__
from .report import ExportedLayer


def exported_layers(model: nn.Module) -> tuple[ExportedLayer, ...]:
    """The model's quantized layers with their bits."""

    def bits(quantizer: nn.Module | None) -> int:
        return OFF_BITS if quantizer is None else quantizer.num_bits

    return tuple(
        ExportedLayer(name, bits(layer.weight_quantizer),
                      bits(layer.input_quantizer), layer.weight.numel())
        for name, layer in quantized_layers(model).items())


def add_metadata(proto: onnx.ModelProto, model: nn.Module,
                 source: dict[str, str]) -> None:
    """Write bits, the scales' source and versions into the file.

    Args:
        proto (onnx.ModelProto): The exported model, changed in place.
        model (nn.Module): The model it was made from.
        source (dict[str, str]): Where the weights come from.
    """
    kinds = {
        type(part).__name__
        for layer in quantized_layers(model).values()
        for part in (layer.weight_quantizer, layer.input_quantizer)
        if part is not None
    }
    layers = {
        layer.name: f'W{layer.weight_bits}A{layer.activation_bits}'
        for layer in exported_layers(model)
    }
    onnx.helper.set_model_props(
        proto, {
            'fpq.version': __version__,
            'fpq.torch': torch.__version__,
            'fpq.onnx': onnx.__version__,
            'fpq.scales': ', '.join(sorted(kinds)),
            'fpq.bits': json.dumps(layers, separators=(',', ':')),
            **{f'fpq.{key}': value
               for key, value in source.items()}
        })
    proto.producer_name = 'fpq-openmmlab'
    proto.producer_version = __version__
