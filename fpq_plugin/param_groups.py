"""Optimizer groups for the quantizers' learned parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence

import torch
from torch import nn

from .quantizers import named_quantizers


def quantizer_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The learned parameters of the model's fake quantizers, by name."""
    return {
        f'{name}.{key}': parameter
        for name, quantizer in named_quantizers(model).items()
        for key, parameter in quantizer.named_parameters(recurse=False)
    }


def weight_decays(model: nn.Module) -> dict[int, float]:
    """Weight decay of each quantizer parameter, by the parameter's id."""
    return {
        id(parameter): quantizer.weight_decay.get(key, 0.0)
        for quantizer in named_quantizers(model).values()
        for key, parameter in quantizer.named_parameters(recurse=False)
    }


def separate_scales(model: nn.Module,
                    optimizers: Sequence[torch.optim.Optimizer],
                    lr_mult: float = 1.0) -> None:
    """Give the quantizers' parameters groups with their own weight decay.

    Each parameter leaves the group it is in for a new one with the same
    options, ``lr * lr_mult`` and the weight decay that its quantizer asks
    for: 0, except for PACT's clip. One that is in no group joins the
    optimizer of its layer, with the options of the layer's weight. This works
    on the built optimizer, so it holds for any optimizer constructor.

    Args:
        model (nn.Module): A converted model.
        optimizers (Sequence[Optimizer]): Its optimizers, not stepped yet.
        lr_mult (float): Factor on the learning rate. Defaults to 1.0.

    Raises:
        ValueError: If a quantizer's parameter is in several groups, or
            nothing of its layer is in any, or if an optimizer does not let
            its groups be changed. The message names it.
    """
    groups = separated_groups(model, optimizers, lr_mult)
    for optimizer, own in zip(optimizers, groups):
        set_groups(optimizer, own)


def separated_groups(model: nn.Module,
                     optimizers: Sequence[torch.optim.Optimizer],
                     lr_mult: float = 1.0) -> list[list[dict]]:
    """The groups that :func:`separate_scales` gives to each optimizer.

    Those that it has come first, the new ones after them. Nothing is changed.
    """
    return [
        _separated(model, optimizer.param_groups, lr_mult, homeless)
        for optimizer, homeless in zip(optimizers, _homes(model, optimizers))
    ]


def set_groups(optimizer: torch.optim.Optimizer,
               groups: Sequence[dict]) -> None:
    """Give an optimizer the groups that it is to have.

    Args:
        optimizer (Optimizer): The optimizer, not stepped yet.
        groups (Sequence[dict]): As of :func:`separated_groups`.

    Raises:
        ValueError: If :func:`has_groups_inside`, or if it refuses a group.
    """
    if has_groups_inside(optimizer):
        raise ValueError(
            f'{type(optimizer).__name__} does not let its groups be changed: '
            'make it with fpq_plugin.param_groups(model)')
    count = len(optimizer.param_groups)
    for group, new in zip(optimizer.param_groups, groups):
        group.update(new)
    for new in groups[count:]:
        if 'param_names' in new:
            new = dict(new, params=list(
                zip(new['param_names'], new['params'])))
        optimizer.add_param_group(new)


def has_groups_inside(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it steps another optimizer, which has groups of its own.

    So does ``ZeroRedundancyOptimizer``: what is changed in its groups does
    not reach those that are stepped.
    """
    return any(
        isinstance(inner, torch.optim.Optimizer)
        and inner.param_groups is not optimizer.param_groups
        for inner in vars(optimizer).values())


def _separated(model: nn.Module, groups: Sequence[dict], lr_mult: float,
               homeless: Mapping[int, Sequence[nn.Parameter]]) -> list[dict]:
    """Copies of the groups, the quantizers' parameters apart.

    ``homeless`` are parameters of quantizers that are to have the options of
    the group of that index.
    """
    decays = weight_decays(model)
    names = {id(p): name for name, p in model.named_parameters()}
    kept, added = [], []
    for number, group in enumerate(groups):
        names.update((id(p), name) for p, name in zip(
            group['params'], group.get('param_names', ())))
        own = _by_decay(
            [*group['params'], *homeless.get(number, ())], decays)
        rest = [p for p in group['params'] if id(p) not in decays]
        options = {k: v for k, v in group.items() if k != 'params'}
        options['lr'] = group['lr'] * lr_mult
        new = [
            dict(options, params=parameters, weight_decay=decay)
            for decay, parameters in own.items()
        ]
        kept.append(dict(group, params=rest) if rest or not new else
                    new.pop(0))
        added += new
    for group in [*kept, *added]:
        if 'param_names' in group:
            group['param_names'] = [names[id(p)] for p in group['params']]
    return kept + added


def _homes(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
           ) -> list[dict[int, list[nn.Parameter]]]:
    """For each optimizer, which homeless parameters join which group.

    Raises:
        ValueError: If a parameter has no place, or several.
    """
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for n, optimizer in enumerate(optimizers):
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group['params']:
                places[id(parameter)].append((n, number))
    scales = quantizer_parameters(model)
    own = {id(p) for p in scales.values()}
    homes: list[dict] = [defaultdict(list) for _ in optimizers]
    for name, parameter in scales.items():
        found = places[id(parameter)]
        if len(found) > 1:
            raise ValueError(
                f'the optimizer has {name} in {len(found)} groups, expected '
                '1: does optim_wrapper.constructor (or a custom optimizer) '
                'give parameters to several?')
        # A constructor may leave frozen parameters out.
        if found or not parameter.requires_grad:
            continue
        beside = [places[id(p)][0] for p in _beside(model, name, own)
                  if places[id(p)]]
        if not beside:
            raise ValueError(
                f'the optimizer has {name} in 0 groups, and nothing else of '
                'its layer: does optim_wrapper.constructor (or a custom '
                'optimizer) leave the layer out? Freeze the layer '
                '(requires_grad_(False)), or leave it float (skip)')
        n, number = beside[0]
        homes[n][number].append(parameter)
    return homes


def _beside(model: nn.Module, name: str,
            own: Container[int]) -> list[nn.Parameter]:
    """Parameters of the layer whose quantizer has the one of this name."""
    path = name.rpartition('.')[0]
    while path:
        path = path.rpartition('.')[0]
        others = [p for p in model.get_submodule(path).parameters()
                  if id(p) not in own]
        if others:
            return others
    return []


def param_groups(model: nn.Module, **options: float) -> list[dict]:
    """Groups for a torch optimizer: the model's, and the quantizers'.

    Args:
        model (nn.Module): A converted model.
        **options: Options of the first group, ``lr`` and ``weight_decay``
            say; the others have the same but their own weight decay, 0
            except for PACT's clip.

    Returns:
        list[dict]: Parameter groups.
    """
    decays = weight_decays(model)
    rest = [p for p in model.parameters() if id(p) not in decays]
    own = _by_decay(quantizer_parameters(model).values(), decays)
    return [
        dict(params=rest, **options),
        *(dict(params=parameters, **{**options, 'weight_decay': decay})
          for decay, parameters in own.items()),
    ]


def _by_decay(parameters: Iterable[nn.Parameter],
              decays: dict[int, float]) -> dict[float, list[nn.Parameter]]:
    """The quantizers' parameters among ``parameters``, by weight decay."""
    groups = defaultdict(list)
    for parameter in parameters:
        if id(parameter) in decays:
            groups[decays[id(parameter)]].append(parameter)
    return groups
