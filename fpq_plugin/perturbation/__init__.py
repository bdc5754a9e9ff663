"""SFP: noise of one quantization step, a function of its place in a run."""

from .noise import StochasticFeaturePerturbation, StochasticWeightPerturbation
from .noise_clock import NoiseClock

__all__ = [
    'NoiseClock', 'StochasticFeaturePerturbation',
    'StochasticWeightPerturbation'
]
