from .fpq_hook import FPQHook

__all__ = ['FPQHook']
