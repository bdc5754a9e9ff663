"""FPQ on Brevitas's layers and quantizers.

Importing this package registers the backend 'brevitas'; ``FPQHook`` and
``fpq_plugin.convert`` import it when a config asks for that backend.
"""

# ruff: noqa: E402
from importlib.util import find_spec

from fpq_plugin.compat import refuse_unfit

refuse_unfit('brevitas')

from .adopt import adopt, float_twin
from .backend import register_injector
from .convs import BrevitasConv2d
from .layers import BrevitasLayer, BrevitasLinear
from .lsq import LSQActPerTensor, LSQWeightPerChannel
from .stock import StockQuantizer

if find_spec('mmcv') is not None:
    from . import mmcv_wrappers  # noqa: F401

__all__ = [
    'BrevitasConv2d', 'BrevitasLayer', 'BrevitasLinear', 'LSQActPerTensor',
    'LSQWeightPerChannel', 'StockQuantizer', 'adopt', 'float_twin',
    'register_injector'
]
