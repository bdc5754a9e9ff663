"""What a state dict holds, and says of quantization, held against a model."""

from .quantization import (
    first_few,
    quantizer_bits,
    refuse_other_quantization,
    refuse_unlike_part,
    stored_quantizers,
)
from .weights import (
    bare_state,
    complete_state,
    dropped_keys,
    float_state,
    load_exactly,
    quantizer_state,
    refuse_other_architecture,
)

__all__ = [
    'bare_state', 'complete_state', 'dropped_keys', 'first_few',
    'float_state', 'load_exactly', 'quantizer_bits', 'quantizer_state',
    'refuse_other_architecture', 'refuse_other_quantization',
    'refuse_unlike_part', 'stored_quantizers'
]
