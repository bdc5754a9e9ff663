from .base import BaseFakeQuantize
from .fake_quantize_function import fake_quantize, positive_step
from .lsq import LSQFakeQuantize
from .quantizer import Quantizer, check_bits

__all__ = [
    'BaseFakeQuantize', 'LSQFakeQuantize', 'Quantizer', 'check_bits',
    'fake_quantize', 'positive_step'
]
