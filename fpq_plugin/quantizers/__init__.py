from .base import BaseFakeQuantize, check_bits
from .fake_quantize_function import fake_quantize, positive_step
from .lsq import LSQFakeQuantize

__all__ = [
    'BaseFakeQuantize', 'LSQFakeQuantize', 'check_bits', 'fake_quantize',
    'positive_step'
]
