"""Optimizers of the rivals; needs the ``sam`` extra."""

from .sam_optim_wrapper import SAMOptimWrapper

__all__ = ['SAMOptimWrapper']
