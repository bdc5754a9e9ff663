"""Optimizer groups for the quantizers' learned parameters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

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
                    optimizers: list[torch.optim.Optimizer],
                    lr_mult: float = 1.0) -> None:
    """Give the quantizers' parameters groups with their own weight decay.

    Each parameter leaves the group it is in for a new one with the same
    options, ``lr * lr_mult`` and the weight decay that its quantizer asks
    for: 0, except for PACT's clip. This works on the built optimizer, so it
    holds for any optimizer constructor.

    Args:
        model (nn.Module): A converted model.
        optimizers (list[Optimizer]): Its optimizers, not stepped yet.
        lr_mult (float): Factor on the learning rate. Defaults to 1.0.

    Raises:
        ValueError: If a quantizer's parameter is not in exactly one group;
            the message names it.
    """
    scales = quantizer_parameters(model)
    decays = weight_decays(model)
    for optimizer in optimizers:
        for group in list(optimizer.param_groups):
            rest = [p for p in group['params'] if id(p) not in decays]
            own = _by_decay(group['params'], decays)
            if not own:
                continue
            options = {k: v for k, v in group.items() if k != 'params'}
            options['lr'] = group['lr'] * lr_mult
            groups = [
                dict(options, params=parameters, weight_decay=decay)
                for decay, parameters in own.items()
            ]
            if rest:
                group['params'] = rest
            else:
                group.update(groups.pop(0))
            for new in groups:
                optimizer.add_param_group(new)
    seen = Counter(
        id(p) for optimizer in optimizers for group in optimizer.param_groups
        for p in group['params'])
    for name, parameter in scales.items():
        # A constructor may leave frozen parameters out.
        least = 1 if parameter.requires_grad else 0
        if not least <= seen[id(parameter)] <= 1:
            raise ValueError(
                f'the optimizer has {name} in {seen[id(parameter)]} groups, '
                'expected 1: does optim_wrapper.constructor (or a custom '
                'optimizer) leave out parameters it does not know?')


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
