"""Distillation: what is compared, and the losses that compare it."""

from .csd_function import csd
from .distiller import Distiller
from .losses import CSDLoss, DistillationLoss, LogitKD, with_share

__all__ = ['CSDLoss', 'DistillationLoss', 'Distiller', 'LogitKD', 'csd',
           'with_share']
