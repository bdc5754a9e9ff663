"""Distillation: what is compared, and the losses that compare it."""

from .csd_function import csd
from .distiller import Distiller
from .losses import CSDLoss, DistillationLoss, LogitKD

__all__ = ['CSDLoss', 'DistillationLoss', 'Distiller', 'LogitKD', 'csd']
