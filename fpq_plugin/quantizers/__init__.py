"""Fake quantizers: one step per tensor or channel, learned or observed."""

from .base_fake_quantize import BaseFakeQuantize
from .description import KEY, describe, differences
from .fake_quantize_function import fake_quantize, positive_step
from .fixed import FixedFakeQuantize
from .grid import Grid, Stage, along_channels, check_bits, weight_to_come
from .lsq import (
    FORMER_DEFAULT,
    LogLSQFakeQuantize,
    LSQFakeQuantize,
    LSQPlusFakeQuantize,
    is_of_lsq,
    log_quantizers,
)
from .of_model import full_precision, named_quantizers, observing
from .pact_dorefa import DoReFaFakeQuantize, PACTFakeQuantize
from .quantizer import Quantizer, lasting
from .torch_ao import TorchAOFakeQuantize

__all__ = [
    'FORMER_DEFAULT', 'KEY', 'BaseFakeQuantize', 'DoReFaFakeQuantize',
    'FixedFakeQuantize', 'Grid', 'LSQFakeQuantize', 'LSQPlusFakeQuantize',
    'LogLSQFakeQuantize', 'PACTFakeQuantize', 'Quantizer', 'Stage',
    'TorchAOFakeQuantize',
    'along_channels', 'check_bits', 'describe', 'differences', 'fake_quantize',
    'full_precision', 'is_of_lsq', 'lasting', 'log_quantizers',
    'named_quantizers', 'observing',
    'positive_step', 'weight_to_come'
]
