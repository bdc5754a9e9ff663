from .csd import CSDLoss
from .csd_function import csd

__all__ = ['CSDLoss', 'csd']
