"""Training steps of other libraries' QAT, each at its own lowest setting.

Each takes a copy of the model through its library's documented way to
quantization-aware training and gives the step that follows. They differ in
bits and in what they learn; ``step_time.py`` compares their cost alone.
``requirements/peers.txt`` pins them.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from train_step import TrainStep


def nncf(model: nn.Module, x: Tensor, y: Tensor) -> TrainStep:
    """NNCF: 8 bits, as ``nncf.quantize`` has no fewer; ranges are learned."""
    import nncf
    quantized = nncf.quantize(
        copy.deepcopy(model).eval(), nncf.Dataset([x]), subset_size=1,
        fast_bias_correction=True)
    return TrainStep(quantized, x, y)


def aimet(model: nn.Module, x: Tensor, y: Tensor) -> TrainStep:
    """AIMET: W4A4, ranges are learned."""
    from aimet_torch.quantsim import QuantizationSimModel
    sim = QuantizationSimModel(copy.deepcopy(model), dummy_input=x,
                               default_param_bw=4, default_output_bw=4)
    sim.compute_encodings(lambda quantized: quantized(x))
    return TrainStep(sim.model, x, y)


def torchao_pt2e(model: nn.Module, x: Tensor, y: Tensor) -> TrainStep:
    """torchao's pt2e QAT: 8 bits, moving-average observers."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer
    quantizer = x86_inductor_quantizer.X86InductorQuantizer().set_global(
        x86_inductor_quantizer.get_default_x86_inductor_quantization_config(
            is_qat=True))
    exported = torch.export.export(copy.deepcopy(model).train(), (x, ))
    return TrainStep(prepare_qat_pt2e(exported.module(), quantizer), x, y)


def quanto(model: nn.Module, x: Tensor, y: Tensor) -> TrainStep:
    """optimum-quanto: 4-bit weights, 8-bit activations (it has no fewer)."""
    from optimum.quanto import Calibration, qint4, qint8, quantize
    quantized = copy.deepcopy(model)
    quantize(quantized, weights=qint4, activations=qint8)
    with torch.no_grad(), Calibration():
        quantized(x)
    return TrainStep(quantized, x, y)


_PEERS = {
    'NNCF W8A8': ('nncf', nncf),
    'AIMET W4A4': ('aimet_torch', aimet),
    'torchao pt2e W8A8': ('torchao', torchao_pt2e),
    'optimum-quanto W4A8': ('optimum', quanto),
}
PEERS = {
    name: build
    for name, (package, build) in _PEERS.items() if find_spec(package)
}
"""Those that are installed."""
