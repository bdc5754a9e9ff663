"""What torch's tracers and transforms see of modules that decide in Python."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from .versions import is_compiling

_in_torch_export = getattr(torch.compiler, 'is_exporting', lambda: False)


def is_exporting() -> bool:
    """Whether torch records a graph to be used without this code.

    That is ``torch.jit.trace``, ``torch.onnx.export`` and, where torch tells
    (since 2.7), ``torch.export``; not ``torch.compile``.
    """
    return torch.jit.is_tracing() or _in_torch_export()


def is_transforming() -> bool:
    """Whether a transform of ``torch.func`` (grad, vmap, jvp...) is active.

    It takes no ``autograd.Function`` whose forward saves tensors itself.
    """
    return not is_compiling() and torch._C._are_functorch_transforms_active()


def whole_call(module: nn.Module, args: tuple,
               kwargs: dict[str, Any]) -> Proxy | None:
    """A call of ``module`` as one node, for ``torch.fx.symbolic_trace``.

    torch.fx does so with torch's own layers, not with what they became.

    Args:
        module (nn.Module): The module whose forward runs.
        args (tuple): The forward's arguments.
        kwargs (dict): Those by keyword.

    Returns:
        Proxy | None: What stands for the output; None outside of torch.fx.
    """
    first = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(first, Proxy):
        return None
    tracer = first.tracer
    return tracer.create_proxy('call_module', tracer.path_of_module(module),
                               args, kwargs)
