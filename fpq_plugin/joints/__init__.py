"""Fake quantizers on what is no layer, so that an engine runs on integers."""

from .attaching import (
    attach_joints,
    attach_safely,
    detach_joints,
    joints_of,
    refuse_lost_hooks,
)
from .biases import rounded_biases
from .placing import Joint, Placing, place_joints
from .watching import watch_forward

__all__ = ['Joint', 'Placing', 'attach_joints', 'attach_safely',
           'detach_joints', 'joints_of', 'place_joints', 'refuse_lost_hooks',
           'rounded_biases', 'watch_forward']
