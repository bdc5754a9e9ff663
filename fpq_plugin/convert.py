"""Quantizing a model in place, before it is wrapped, and undoing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.model import is_model_wrapper
from torch import nn

from .joints import detach_joints
from .layer_table import LayerTable
from .layers import allow_reparameterizing, quantized_layers, unroute
from .optimizer_watch import watch
from .perturbation import NoiseClock, StochasticFeaturePerturbation
from .presets import OF_PRESET
from .recipe import Recipe


def convert(model: nn.Module,
            weight: dict | None = OF_PRESET,
            activation: dict | None = OF_PRESET,
            perturbation: dict | None = None,
            first_last_bits: int | None = 8,
            skip: Sequence[str] = (),
            overrides: Mapping[str, dict] | None = None,
            backend: str = 'torch_ao',
            attention: dict | None = None,
            target: str | None = None) -> LayerTable:
    """Quantize the model's layers in place.

    Layers of the registered types get a weight quantizer (per output
    channel, symmetric) and an input quantizer (per tensor, asymmetric), as
    in the paper. Parameters keep their names and identity. Nothing is
    traced: first and last are so in the order of ``model.named_modules()``;
    of modules named ``*_head`` it is the layers that predict.

    Args:
        model (nn.Module): The model, changed in place.
        weight (dict, optional): As in :class:`~fpq_plugin.Recipe`, like
            all that follow. Defaults to that of the preset 'recommended',
            4 bits.
        activation (dict, optional): Defaults likewise, 4 bits.
        perturbation (dict, optional): Defaults to None, off.
        first_last_bits (int, optional): Defaults to 8.
        skip (Sequence[str]): Defaults to nothing.
        overrides (Mapping[str, dict], optional): Defaults to none.
        backend (str): Defaults to 'torch_ao'.
        attention (dict, optional): Defaults to None, float.
        target (str, optional): Whose rules weights keep and options are held
            against; what it wants beside layers comes by :func:`add_joints`.
            Defaults to None, any engine.

    Returns:
        LayerTable: One row for each layer with a weight of two or more axes.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If an option, a value or a pattern is wrong, if the model
            is converted or wrapped already (DDP, FSDP, torch.compile), or if
            nothing is left to quantize.
        ImportError: If what the backend needs is not installed.

    Examples:
        >>> from torch import nn
        >>> from fpq_plugin import convert
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(),
        ...                       nn.Conv2d(8, 8, 3), nn.ReLU(),
        ...                       nn.Conv2d(8, 2, 3))
        >>> [(row.name, row.weight_bits) for row in convert(model)]
        [('0', 8), ('2', 4), ('4', 8)]
    """
    recipe = Recipe(
        weight=weight,
        activation=activation,
        perturbation=perturbation,
        distillation=None,
        first_last_bits=first_last_bits,
        skip=skip,
        overrides=overrides,
        backend=backend,
        attention=attention,
        target=target,
        key='')
    refuse_wrapped(model, 'convert')
    table = recipe.convert(model)
    watch(model)
    return table


def to_float(model: nn.Module) -> nn.Module:
    """Undo :func:`convert` in place.

    The weights are then the latent ones that training moved, not what they
    were quantized to: the model answers otherwise than the quantized one.

    Args:
        model (nn.Module): A model with quantized layers.

    Returns:
        nn.Module: The same model.
    """
    clock = noise_clock(model)
    if clock is not None:
        for handle, hook in list(model._forward_pre_hooks.items()):
            if getattr(hook, '__self__', None) is clock:
                del model._forward_pre_hooks[handle]
    detach_joints(model)
    for layer in quantized_layers(model).values():
        layer.unswap()
    unroute(model)
    allow_reparameterizing(model)
    return model


def noise_clock(model: nn.Module) -> NoiseClock | None:
    """The clock of the model's perturbed layers, None if there are none."""
    for module in model.modules():
        if isinstance(module, StochasticFeaturePerturbation):
            return module.clock
    return None


# -- wrappers, which do not learn of what is changed inside ---------------

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
