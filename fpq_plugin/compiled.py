"""Tensor functions that run through torch.compile where that pays.

An eager elementwise formula reads and writes memory once per operation;
compiled by Inductor it does so once. :func:`compiled` wraps a pure function
of tensors. It is compiled on its first use with dynamic shapes, and later
again only for another rank, dtype or memory order. Functions that are called
on flattened tensors so cost a handful of compilations, whatever the number of
layers. Tensors that are too small for it, and float64, take the plain
function.

Where there is no C++ compiler (on CUDA: no Triton), or compiling fails for
any other reason, all wrapped functions are plain from then on; one warning
names the reason. The environment variable ``FPQ_COMPILE=0`` asks for that.
Compilations and the seconds they took are in :func:`compile_report` and, one
line each, in the log at level DEBUG.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

try:
    from torch.compiler import is_compiling
except ImportError:  # torch 2.1 and 2.2
    from torch._dynamo import is_compiling

MIN_ELEMENTS = 2**13
"""Below this a compiled call's guards cost more than its fusion saves."""

_OPTIONS = {
    # Inductor otherwise starts Python up to six times to try the CPU's
    # vector instructions, which takes longer than all our compilations.
    'cpp.vec_isa_ok': True,
    # Triton's own division is approximate and rounds ties another way.
    'eager_numerics.division_rounding': True,
}


@dataclass
class CompileReport:
    """What compiling cost this process.

    Attributes:
        count (int): Number of compilations.
        seconds (float): Time they took, the first use's imports included.
        failure (str, optional): Why plain functions run instead, if they do.
    """

    count: int = 0
    seconds: float = 0.0
    failure: str | None = None


_report = CompileReport()


def compile_report() -> CompileReport:
    """The process's compilations so far."""
    return _report


class CompiledFunction:
    """A function with a plain and a compiled form; see :func:`compiled`.

    Attributes:
        plain (Callable): The function as written.
    """

    def __init__(self, function: Callable) -> None:
        self.plain = function
        self._fast: dict[tuple, Callable] = {}
        functools.update_wrapper(self, function)

    def pays(self, x: Tensor) -> bool:
        """Whether the compiled form is the one to call for input ``x``."""
        return (x.numel() >= MIN_ELEMENTS and x.dtype != torch.float64
                and x.device.type in ('cpu', 'cuda')
                and type(x) in (Tensor, nn.Parameter)
                and _report.failure is None and _enabled()
                and not is_compiling()
                and not torch.jit.is_tracing())

    def __call__(self, *args: Any) -> Any:
        """Call the compiled form, or the plain one if compiling fails.

        Args:
            *args: Tensors and numbers; gradient does not flow.
        """
        # The guards look at a view's base and at requires_grad; a detached
        # tensor has neither.
        args = [a.detach() if isinstance(a, Tensor) else a for a in args]
        try:
            return self._call_fast(args)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            _give_up(error)
            return self.plain(*args)

    def _call_fast(self, args: list) -> Any:
        start = time.perf_counter()
        variant = (args[0].dtype, *(a for a in args if isinstance(a, bool)))
        if variant not in self._fast:
            self._fast[variant] = self._compile()
        before = self._graphs['unique_graphs']
        out = self._fast[variant](*args)
        if self._graphs['unique_graphs'] != before:
            _report.count += 1
            _report.seconds += time.perf_counter() - start
            print_log(
                f'compiled {self.__name__}: {_report.count} compilations, '
                f'{_report.seconds:.1f} s in all',
                'current',
                level=logging.DEBUG)
        return out

    def _compile(self) -> Callable:
        if _report.count == 0:
            print_log(
                'FPQ compiles its kernels in the first iterations, which '
                'takes some seconds a process; FPQ_COMPILE=0 turns it off',
                'current')
        import torch._dynamo.utils
        import torch._inductor
        self._graphs = torch._dynamo.utils.counters['stats']
        known = torch._inductor.list_options()
        # Dynamo limits the compilations of one code object, to 8.
        own_code = FunctionType(self.plain.__code__.replace(),
                                self.plain.__globals__, self.__name__,
                                self.plain.__defaults__,
                                self.plain.__closure__)
        return torch.compile(
            own_code,
            dynamic=True,
            fullgraph=True,
            options={k: v for k, v in _OPTIONS.items() if k in known})


def compiled(function: Callable) -> CompiledFunction:
    """Decorator: give a pure tensor function a compiled form.

    Args:
        function (Callable): Takes tensors and numbers, returns tensors;
            differentiated by the caller, not by autograd.

    Returns:
        CompiledFunction: Called where its ``pays`` holds; ``plain`` is the
        function itself.

    Examples:
        >>> import torch
        >>> from fpq_plugin.compiled import compiled
        >>> @compiled
        ... def scaled(x, factor):
        ...     return x * factor
        >>> x = torch.ones(4)
        >>> (scaled if scaled.pays(x) else scaled.plain)(x, 2).tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    return CompiledFunction(function)


def _enabled() -> bool:
    return os.environ.get('FPQ_COMPILE') != '0'


def _give_up(error: Exception) -> None:
    reason = str(error).strip().splitlines() or ['']
    _report.failure = f'{type(error).__name__}: {reason[0]}'
    print_log(
        'FPQ runs without torch.compile: training is slower, results are the '
        f'same ({_report.failure})',
        'current',
        level=logging.WARNING)
