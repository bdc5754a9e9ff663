from .csd import CSDLoss
from .csd_function import csd
from .logit_kd import LogitKD

__all__ = ['CSDLoss', 'LogitKD', 'csd']
