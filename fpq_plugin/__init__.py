"""Feature-Perturbed Quantization for OpenMMLab.

Importing this package registers :class:`FPQHook`, :class:`CSDLoss`,
:class:`StochasticFeaturePerturbation` and the fake quantizers with MMEngine.
"""

from .calibrate import calibrate
from .compat import (
                     allow_launch_without_accelerator,
                     allow_mmengine_checkpoints,
)
from .convert import convert, to_float
from .distill import Distiller
from .hooks import (
                     FPQHook,
                     HessianTraceHook,
                     NoiseGradientHook,
                     OutputVarianceHook,
                     SQNRHook,
)
from .inference import load_model
from .layers import QuantizedLayer, register_layer
from .losses import CSDLoss
from .param_groups import param_groups
from .perturb import StochasticFeaturePerturbation
from .quantizers import BaseFakeQuantize, LSQFakeQuantize, Quantizer
from .version import __version__

allow_mmengine_checkpoints()
allow_launch_without_accelerator()

__all__ = [
    'BaseFakeQuantize', 'CSDLoss', 'Distiller', 'FPQHook', 'HessianTraceHook',
    'LSQFakeQuantize', 'NoiseGradientHook', 'OutputVarianceHook',
    'QuantizedLayer', 'Quantizer', 'SQNRHook',
    'StochasticFeaturePerturbation',
    '__version__',
    'calibrate', 'convert', 'load_model', 'param_groups', 'register_layer',
    'to_float'
]
