from .base import BaseFakeQuantize
from .dorefa import DoReFaFakeQuantize
from .fake_quantize_function import fake_quantize, positive_step
from .grid import Grid
from .lsq import LSQFakeQuantize
from .lsq_plus import LSQPlusFakeQuantize
from .pact import PACTFakeQuantize
from .quantizer import Quantizer, check_bits
from .torch_ao import TorchAOFakeQuantize

__all__ = [
    'BaseFakeQuantize', 'DoReFaFakeQuantize', 'Grid', 'LSQFakeQuantize',
    'LSQPlusFakeQuantize', 'PACTFakeQuantize', 'Quantizer',
    'TorchAOFakeQuantize', 'check_bits', 'fake_quantize', 'positive_step'
]
