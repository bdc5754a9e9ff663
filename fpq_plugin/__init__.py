"""Feature-Perturbed Quantization for OpenMMLab.

Importing this package registers :class:`FPQHook`, :class:`CSDLoss`,
:class:`StochasticFeaturePerturbation` and the fake quantizers with MMEngine.
"""

# First: it refuses versions that cannot work.
from ._compat import versions  # noqa: F401

# isort: split
from ._compat import patches
from .add_joints import add_joints
from .analysis.hooks import (
    HessianTraceHook,
    NoiseGradientHook,
    OutputVarianceHook,
    SQNRHook,
)
from .batch_norms import reestimate_batch_norms
from .calibrate import calibrate
from .convert import convert, to_float
from .distillation import CSDLoss, DistillationLoss, Distiller, LogitKD
from .layers import (
    QuantizedLayer,
    register_attention,
    register_layer,
    register_weight_reader,
)
from .openmmlab.checkpoints import load_model, refuse_latent_weights
from .openmmlab.fpq_hook import FPQHook
from .openmmlab.runs import after_run, before_run
from .param_groups import param_groups
from .perturbation import (
    StochasticFeaturePerturbation,
    StochasticWeightPerturbation,
)
from .quantizers import (
    BaseFakeQuantize,
    DoReFaFakeQuantize,
    LogLSQFakeQuantize,
    LSQFakeQuantize,
    LSQPlusFakeQuantize,
    PACTFakeQuantize,
    Quantizer,
    TorchAOFakeQuantize,
)
from .recipe import Recipe
from .version import __version__

patches.install(before_run, after_run, before_load=refuse_latent_weights)

__all__ = [
    'BaseFakeQuantize', 'CSDLoss', 'DistillationLoss', 'Distiller',
    'DoReFaFakeQuantize',
    'FPQHook', 'HessianTraceHook', 'LSQFakeQuantize', 'LSQPlusFakeQuantize',
    'LogLSQFakeQuantize', 'LogitKD', 'NoiseGradientHook',
    'OutputVarianceHook', 'PACTFakeQuantize', 'QuantizedLayer', 'Quantizer',
    'Recipe', 'SQNRHook', 'StochasticFeaturePerturbation',
    'StochasticWeightPerturbation', 'TorchAOFakeQuantize', '__version__',
    'add_joints', 'calibrate', 'convert', 'load_model', 'param_groups',
    'reestimate_batch_norms', 'register_attention', 'register_layer',
    'register_weight_reader', 'to_float'
]
