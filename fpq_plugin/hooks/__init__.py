from .forgotten_hook import refuse_forgotten_hooks
from .fpq_hook import FPQHook
from .hessian_trace_hook import HessianTraceHook
from .noise_gradient_hook import NoiseGradientHook
from .output_variance_hook import OutputVarianceHook
from .sqnr_hook import SQNRHook

__all__ = [
    'FPQHook', 'HessianTraceHook', 'NoiseGradientHook', 'OutputVarianceHook',
    'SQNRHook', 'refuse_forgotten_hooks'
]
