from .base import BaseFakeQuantize
from .fake_quantize_function import fake_quantize, positive_step
from .grid import Grid
from .lsq import LSQFakeQuantize
from .quantizer import Quantizer, check_bits

__all__ = [
    'BaseFakeQuantize', 'Grid', 'LSQFakeQuantize', 'Quantizer', 'check_bits',
    'fake_quantize', 'positive_step'
]
