"""Tensor functions that run through Inductor where that pays.

An eager elementwise formula reads and writes memory once per operation;
compiled by Inductor it does so once. :func:`compiled` wraps a pure function
of tensors. It is traced on its first use with symbolic sizes and compiled;
later again only for other dtypes, another memory order or axes of size one.
Functions that are called on flattened tensors so cost a handful of
compilations, whatever the number of layers. Inductor's function is called as
it is: torch.compile's guards would cost more than most of our kernels.
Tensors that are too small for it, and float64, take the plain function.

Where there is no C++ compiler (on CUDA: no Triton), or compiling fails for
any other reason, all wrapped functions are plain from then on; one warning
names the reason. The environment variable ``FPQ_COMPILE=0`` asks for that.
Only what trains compiles: a test of a model takes the plain functions.
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
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .versions import INDUCTOR_TAKES_SYMBOLIC_SIZES, is_compiling

MIN_ELEMENTS = 2**8
"""Below this a toy model would wait for a compiler that it never repays."""

_MAX_ELEMENTS = 2**31
"""From here on Inductor's 32-bit indices would not do."""

_SIZES = (31, 61, 1021), (61, 16411)
"""Sizes to trace with, by number of axes: Inductor judges by them whether
threads and compensated sums pay."""

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

    def pays(self, x: Tensor, trains: bool = True) -> bool:
        """Whether the compiled form is the one to call for input ``x``.

        Args:
            x (Tensor): The largest input.
            trains (bool): Whether a backward follows. What only tests a model
                is over before a compilation has paid, so it takes what a
                training has compiled, or the plain form. Defaults to True.
        """
        return ((trains or bool(self._fast))
                and MIN_ELEMENTS <= x.numel() < _MAX_ELEMENTS
                and x.dtype != torch.float64
                and x.device.type in ('cpu', 'cuda')
                and type(x) in (Tensor, nn.Parameter)
                and _report.failure is None and _enabled()
                and not is_compiling()
                and not torch.jit.is_tracing())

    def __call__(self, *args: Any) -> Any:
        """Call the compiled form, or the plain one if compiling fails.

        Args:
            *args: Tensors and, compiled in, bools and numbers. Gradient does
                not flow. The first tensor has two or three axes; the others
                have its sizes or 1 along each, or no axis. All are
                contiguous, or, of three axes, after a swap of the last two.
        """
        key = (torch.get_num_threads(), *map(_kind, args))
        try:
            if key not in self._fast:
                self._fast[key] = self._compile(args)
            out = self._fast[key]([a for a in args if isinstance(a, Tensor)])
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            _give_up(error)
            return self.plain(*args)
        return out if len(out) > 1 else out[0]

    def _compile(self, args: tuple) -> Callable:
        if not INDUCTOR_TAKES_SYMBOLIC_SIZES:
            raise RuntimeError(f'the Inductor of torch {torch.__version__} '
                               'does not take symbolic sizes')
        if _report.count == 0:
            print_log(
                'FPQ compiles its kernels in the first iterations, which '
                'takes some seconds a process; FPQ_COMPILE=0 turns it off',
                'current')
        start = time.perf_counter()
        fast = _through_inductor(self.plain, args)
        _report.count += 1
        _report.seconds += time.perf_counter() - start
        print_log(
            f'compiled {self.plain.__name__}: {_report.count} compilations, '
            f'{_report.seconds:.1f} s in all',
            'current',
            level=logging.DEBUG)
        return fast


def _through_inductor(function: Callable, args: tuple) -> Callable:
    """``function`` compiled for arguments like ``args``.

    Returns:
        Callable: Takes the list of the tensors among the arguments, empties
        it and returns the tuple of outputs.
    """
    from torch._dynamo.utils import detect_fake_mode
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V
    from torch.fx import GraphModule
    from torch.fx.experimental.proxy_tensor import make_fx

    def of_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        out = function(*(next(rest) if isinstance(a, Tensor) else a
                         for a in args))
        return out if isinstance(out, tuple) else (out, )

    tensors = [a for a in args if isinstance(a, Tensor)]
    aten = torch.ops.aten
    # The Inductor of torch 2.6 has no slice_copy, which views become.
    table = {**select_decomp_table(),
             aten.slice_copy.Tensor: aten.slice.Tensor}
    trace = make_fx(
        torch.func.functionalize(of_tensors, remove='mutations_and_views'),
        decomposition_table=table,
        tracing_mode='symbolic')
    with torch.no_grad(), torch.autocast(
            tensors[0].device.type, enabled=False):
        graph = trace(*map(_example, tensors)).graph
    fakes = [n.meta['val'] for n in graph.nodes if n.op == 'placeholder']
    known = {k: v for k, v in _OPTIONS.items() if k in config._config}
    # A module of its own: make_fx's holds what Inductor cannot cache.
    module = GraphModule(nn.Module(), graph)
    with V.set_fake_mode(detect_fake_mode(fakes)), config.patch(known):
        return compile_fx_inner(module, fakes)


def _kind(arg: Any) -> Any:
    """What a compiled form is for: of a number its value."""
    if not isinstance(arg, Tensor):
        return arg
    shape = arg.shape
    ones = tuple([n == 1 for n in shape]) if 1 in shape else len(shape)
    return arg.dtype, arg.device, arg.is_contiguous(), ones


def _example(x: Tensor) -> Tensor:
    """A tensor to trace with: sizes differ, so none are taken for equal."""
    usual = next((list(s) for s in _SIZES if len(s) == x.dim()), [])
    sizes = [1 if n == 1 else size for n, size in zip(x.shape, usual)]
    swap = not x.is_contiguous()
    if swap:
        sizes[-2:] = sizes[:-3:-1]
    out = torch.empty(sizes, dtype=x.dtype, device=x.device)
    return out.mT if swap else out


@functools.lru_cache(maxsize=2**14)
def constant(value: float, device: torch.device) -> Tensor:
    """A number as a float32 tensor without axes: each number compiled in
    would cost a compilation."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32, device=device)


def compiled(function: Callable) -> CompiledFunction:
    """Decorator: give a pure tensor function a compiled form.

    Args:
        function (Callable): Takes tensors, bools and numbers, returns a
            tensor or several; differentiated by the caller, not by autograd.

    Returns:
        CompiledFunction: Called where its ``pays`` holds; ``plain`` is the
        function itself.

    Examples:
        >>> import torch
        >>> from fpq_plugin._compat.kernels import compiled
        >>> @compiled
        ... def scaled(x, factor):
        ...     return x * factor
        >>> x = torch.ones(1, 4)
        >>> (scaled if scaled.pays(x) else scaled.plain)(x, 2).tolist()
        [[2.0, 2.0, 2.0, 2.0]]
    """
    return CompiledFunction(function)


def _enabled() -> bool:
    return os.environ.get('FPQ_COMPILE') != '0'


def _give_up(error: Exception) -> None:
    reason = str(error).strip().splitlines() or ['']
    _report.failure = f'{type(error).__name__}: {reason[0]}'
    print_log(
        'FPQ runs without its compiled kernels: training is slower, results '
        'are the same up to rounding, which training amplifies '
        f'({_report.failure})',
        'current',
        level=logging.WARNING)
