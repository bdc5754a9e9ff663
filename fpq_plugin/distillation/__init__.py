"""Distillation: what is compared, and the losses that compare it."""

from .base import DistillationLoss
from .csd import CSDLoss
from .csd_function import csd
from .distiller import Distiller
from .logits import LogitKD

__all__ = ['CSDLoss', 'DistillationLoss', 'Distiller', 'LogitKD', 'csd']
