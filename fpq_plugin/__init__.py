"""Feature-Perturbed Quantization for OpenMMLab.

Importing this package registers :class:`FPQHook`, :class:`CSDLoss`,
:class:`StochasticFeaturePerturbation` and the fake quantizers with MMEngine.
"""

from ._compat import (
    safe_loading,
    versions,  # isort: split  (refuses what cannot work)
)
from .analysis.hooks import (
    HessianTraceHook,
    NoiseGradientHook,
    OutputVarianceHook,
    SQNRHook,
)
from .calibrate import calibrate
from .convert import convert, to_float
from .distillation import CSDLoss, Distiller, LogitKD
from .layers import (
    QuantizedLayer,
    register_attention,
    register_layer,
    register_weight_reader,
)
from .openmmlab.config_checks import refuse_forgotten_hooks
from .openmmlab.fpq_hook import FPQHook
from .openmmlab.inference import load_model
from .param_groups import param_groups
from .perturbation import (
    StochasticFeaturePerturbation,
    StochasticWeightPerturbation,
)
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

safe_loading.allow_mmengine_checkpoints()
safe_loading.read_checkpoints_as_data()
versions.allow_launch_without_accelerator()
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
