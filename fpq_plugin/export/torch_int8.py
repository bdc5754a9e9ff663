"""A trained model on torch's own int8 kernels."""

from __future__ import annotations

import copy
import warnings
from functools import lru_cache

import torch
from torch import Tensor, nn

from .._compat.tracing import is_exporting
from .._compat.versions import onednn_qconv2d
from ..layers import (
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    quantized_layers,
)
from .integers import IntegerGrid, integer_grid, weight_integers


class Int8Layer(nn.Module):
    """A layer on integers: uint8 input, int8 weight, float output.

    ``torch.ao.nn.quantized`` has layers with an 8-bit output alone; FPQ
    quantizes what enters a layer, so these call the oneDNN kernels that
    torch's compiler uses.

    Args:
        layer (QuantizedLayer): The trained layer.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        features = integer_grid(layer.input_quantizer)
        weight = weight_integers(layer.weight_quantizer,
                                 layer.weight.detach().cpu().numpy())
        channels = len(layer.weight)
        self.scale, self.zero_point = float(features.step), int(
            features.zero_point)
        self.low, self.high = features.low, features.high
        self.register_buffer(
            'weight', torch.tensor(weight.weight, dtype=torch.int8))
        self.register_buffer('weight_scale', _vector(weight, channels))
        self.register_buffer('bias', layer.bias)
        self.register_buffer(
            'weight_zero_point',
            torch.zeros(channels, dtype=torch.int64),
            persistent=False)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        error_msgs.append(
            f'{prefix[:-1]}: its weight is packed for this processor. Load '
            "the trained model's state into that model, and call "
            'to_torch_int8 on it')

    def __reduce_ex__(self, protocol):
        raise TypeError(
            f'{type(self).__name__} cannot be copied or pickled: its weight '
            'is packed for this processor. Copy or save the trained model, '
            'and call to_torch_int8 on that')

    @classmethod
    def from_float(cls, layer: QuantizedLayer) -> Int8Layer:
        """What ``torch.ao.quantization.convert`` calls."""
        return cls(layer)

    def quantize(self, x: Tensor) -> Tensor:
        """The integers of the input, uint8.

        Raises:
            RuntimeError: If torch.jit.trace or torch.export records a graph.
        """
        if is_exporting():
            raise RuntimeError(
                f'{type(self).__name__} cannot be traced: its weight is '
                'packed for this processor, which no graph holds. Trace the '
                'model that to_torch_int8 was given')
        q = torch.round(x / self.scale) + self.zero_point
        return q.clamp_(self.low, self.high).to(torch.uint8)


class Int8Linear(Int8Layer):
    """``nn.Linear`` on integers; features are (..., C)."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self._packed = torch.ops.onednn.qlinear_prepack(self.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            self.quantize(x), self.scale, self.zero_point, self._packed,
            self.weight_scale, self.weight_zero_point, self.bias, 1.0, 0,
            torch.float32, 'none', [], '')


class Int8Conv2d(Int8Layer):
    """``nn.Conv2d`` on integers; maps are (N, C, H, W)."""

    def __init__(self, layer: QuantizedConv2d) -> None:
        super().__init__(layer)
        self.padding_mode = layer.padding_mode
        self.border = list(layer._reversed_padding_repeated_twice)
        # What is not symmetric or not zero is padded before the kernel.
        padding = [0, 0] if self._pads_itself() else self.border[2::-2]
        self.geometry = (list(layer.stride), padding, list(layer.dilation),
                         layer.groups)
        self._packed = torch.ops.onednn.qconv_prepack(
            self.weight, self.weight_scale, self.scale, self.zero_point,
            *self.geometry, None)

    def _pads_itself(self) -> bool:
        left, right, top, bottom = self.border
        return self.padding_mode != 'zeros' or left != right or top != bottom

    def forward(self, x: Tensor) -> Tensor:
        if self._pads_itself():
            mode = {'zeros': 'constant'}.get(self.padding_mode,
                                             self.padding_mode)
            x = nn.functional.pad(x, self.border, mode=mode)
        return onednn_qconv2d()(
            self.quantize(x), self.scale, self.zero_point, self._packed,
            self.weight_scale, self.weight_zero_point, self.bias,
            *self.geometry, 1.0, 0, torch.float32, 'none', [], '')


INT8_LAYERS: dict[type[QuantizedLayer], type[Int8Layer]] = {
    QuantizedConv2d: Int8Conv2d,
    QuantizedLinear: Int8Linear,
}


def to_torch_int8(model: nn.Module) -> nn.Module:
    """A copy of a trained model whose quantized layers compute in int8.

    Runs ``torch.ao.quantization.convert`` on a copy, with layers of integers
    in the mapping. Everything between the layers stays float.

    Args:
        model (nn.Module): A quantized model of the backend 'torch_ao'.

    Returns:
        nn.Module: The copy, in eval mode, on the CPU.

    Raises:
        RuntimeError: If this torch has no such convert or kernels.
        ValueError: If a layer cannot be converted; the message names it.
    """
    _require_kernels()
    from torch.ao.quantization import QConfig, convert

    mapping = {}
    for name, layer in quantized_layers(model).items():
        mapping[type(layer)] = _int8_type(name, layer)
    twin = copy.deepcopy(model).cpu().eval()
    for layer in quantized_layers(twin).values():
        # convert swaps what has a qconfig, whatever it says.
        layer.qconfig = QConfig(activation=nn.Identity, weight=nn.Identity)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        return convert(twin, mapping=mapping, inplace=True)


def _int8_type(name: str, layer: QuantizedLayer) -> type[Int8Layer]:
    parts = (layer.weight_quantizer, layer.input_quantizer)
    try:
        if any(part is None or not part.has_step() for part in parts):
            raise ValueError('int8 needs a quantized weight and input')
        weight, features = (integer_grid(part) for part in parts)
        if features.low < 0:
            raise ValueError('int8 needs an unsigned input')
        if weight.zero_point.any() or weight.high > 127:
            raise ValueError('int8 needs a symmetric, signed weight')
        int8 = next((int8 for kind, int8 in INT8_LAYERS.items()
                     if isinstance(layer, kind)), None)
        if int8 is None:
            raise ValueError(f'no int8 layer for {type(layer).__name__}')
        if weight.may_saturate() and kernels_saturate():
            raise ValueError(
                f'a weight of {weight.low} to {weight.high} saturates on this '
                'processor, which has no VNNI instructions: train it with 7 '
                'bits')
        return int8
    except ValueError as error:
        raise ValueError(f'not converted: {name}: {error}') from error


def _vector(weight: IntegerGrid, channels: int) -> Tensor:
    return torch.tensor(weight.step).expand(channels).contiguous()


def has_kernels() -> bool:
    """Whether this torch has oneDNN's int8 layers with float output."""
    try:
        import torch.ao.quantization as ao
        found = hasattr(ao, 'convert') and 'onednn' in (
            torch.backends.quantized.supported_engines)
        schema = str(onednn_qconv2d().default._schema)
    except (ImportError, AttributeError):
        return False
    return found and 'output_dtype' in schema


@lru_cache
def kernels_saturate() -> bool:
    """Whether they add pairs of products in 16 bits on this processor."""
    weight = torch.full((1, 4), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    total = torch.ops.onednn.qlinear_pointwise(
        torch.full((1, 4), 255, dtype=torch.uint8), 1.0, 0, packed,
        torch.ones(1), torch.zeros(1, dtype=torch.int64), None, 1.0, 0,
        torch.float32, 'none', [], '')
    return total.item() != 4 * 255 * 127


def _require_kernels() -> None:
    if not has_kernels():
        raise RuntimeError(f'torch {torch.__version__} has no int8 layers '
                           'with float output on this machine')
