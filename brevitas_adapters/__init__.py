"""FPQ on Brevitas's layers and quantizers.

Importing this package registers the backend 'brevitas'; ``FPQHook`` and
``fpq_plugin.convert`` import it when a config asks for that backend.
"""

# ruff: noqa: E402
from fpq_plugin._compat.versions import refuse_unfit

refuse_unfit('brevitas')

from .adopt import adopt, float_twin
from .backend import register_injector
from .convolutions import BrevitasConv2d
from .layers import BrevitasLayer, BrevitasLinear
from .stock import StockQuantizer
from .tensor_quant import LSQActPerTensor, LSQWeightPerChannel

__all__ = [
    'BrevitasConv2d', 'BrevitasLayer', 'BrevitasLinear', 'LSQActPerTensor',
    'LSQWeightPerChannel', 'StockQuantizer', 'adopt', 'float_twin',
    'register_injector'
]
