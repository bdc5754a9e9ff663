"""Feature-Perturbed Quantization for OpenMMLab.

Importing this package registers :class:`FPQHook`, :class:`CSDLoss`,
:class:`StochasticFeaturePerturbation` and the fake quantizers with MMEngine.
"""

from . import (
                     compat,  # isort: split  (refuses stacks that cannot work)
                     safe_loading,
)
from .calibrate import calibrate
from .convert import convert, to_float
from .distill import Distiller
from .hooks import (
                     FPQHook,
                     HessianTraceHook,
                     NoiseGradientHook,
                     OutputVarianceHook,
                     SQNRHook,
                     refuse_forgotten_hooks,
)
from .inference import load_model
from .layers import (
                     QuantizedLayer,
                     register_attention,
                     register_layer,
                     register_weight_reader,
)
from .losses import CSDLoss, LogitKD
from .param_groups import param_groups
from .perturb import StochasticFeaturePerturbation
from .quantizers import (
                     BaseFakeQuantize,
                     DoReFaFakeQuantize,
                     LSQFakeQuantize,
                     LSQPlusFakeQuantize,
                     PACTFakeQuantize,
                     Quantizer,
                     TorchAOFakeQuantize,
)
from .version import __version__
from .weight_perturb import StochasticWeightPerturbation

safe_loading.allow_mmengine_checkpoints()
safe_loading.read_checkpoints_as_data()
compat.allow_launch_without_accelerator()
refuse_forgotten_hooks()

__all__ = [
    'BaseFakeQuantize', 'CSDLoss', 'Distiller', 'DoReFaFakeQuantize',
    'FPQHook', 'HessianTraceHook', 'LSQFakeQuantize', 'LSQPlusFakeQuantize',
    'LogitKD', 'NoiseGradientHook', 'OutputVarianceHook', 'PACTFakeQuantize',
    'QuantizedLayer', 'Quantizer', 'SQNRHook',
    'StochasticFeaturePerturbation', 'StochasticWeightPerturbation',
    'TorchAOFakeQuantize', '__version__',
    'calibrate', 'convert', 'load_model', 'param_groups',
    'register_attention', 'register_layer',
    'register_weight_reader', 'to_float'
]
