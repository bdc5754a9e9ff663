"""Wrappers around a model, which do not learn of what is changed inside."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from torch import nn

# By name, since some are expensive to import.
_NAMES = frozenset([
    'DataParallel', 'DeepSpeedEngine', 'DistributedDataParallel',
    'FSDPModule', 'FullyShardedDataParallel', 'OptimizedModule'
])


def find_wrapper(model: nn.Module) -> tuple[str, str] | None:
    """The first wrapper around a model, or around a part of it.

    Args:
        model (nn.Module): The model.

    Returns:
        tuple[str, str] | None: Its name in the model, which is empty for the
        model itself, and the name of its class. None without a wrapper.
    """
    for name, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__]
        if is_model_wrapper(module) or not _NAMES.isdisjoint(kinds):
            return name, type(module).__name__
        if getattr(module, '_compiled_call_impl', None) is not None:
            return name, 'torch.compile'
    return None


def refuse_wrapped(model: nn.Module, verb: str) -> None:
    """Refuse to change a model inside of a wrapper.

    A reducer's buckets, a shard, a replica or a compiled graph are of the
    model as it was: what comes new is not averaged over the processes, and
    what is taken away is waited for.

    Args:
        model (nn.Module): The model, or a wrapper around it.
        verb (str): What is to be done with it.

    Raises:
        ValueError: Naming the wrapper, and where it is.
    """
    found = find_wrapper(model)
    if found is not None:
        name, kind = found
        raise ValueError(
            f'{verb}: {name or "the model"} is wrapped by {kind}, which does '
            'not learn of what is changed inside. Call convert and calibrate '
            'on the plain model, and wrap it after that')
