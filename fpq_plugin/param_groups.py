"""Optimizer groups for the quantizers' scales."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from .quantizers import Quantizer


def quantizer_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The learned parameters of the model's fake quantizers, by name."""
    return {
        f'{name}.{key}': parameter
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
        for key, parameter in module.named_parameters(recurse=False)
    }


def separate_scales(model: nn.Module,
                    optimizers: list[torch.optim.Optimizer],
                    lr_mult: float = 1.0) -> None:
    """Give the quantizers' parameters groups without weight decay.

    Each parameter leaves the group it is in for a new one with the same
    options, ``weight_decay=0`` and ``lr * lr_mult``. This works on the built
    optimizer, so it holds for any optimizer constructor.

    Args:
        model (nn.Module): A converted model.
        optimizers (list[Optimizer]): Its optimizers, not stepped yet.
        lr_mult (float): Factor on the learning rate. Defaults to 1.0.

    Raises:
        ValueError: If a quantizer's parameter is not in exactly one group;
            the message names it.
    """
    scales = quantizer_parameters(model)
    names = {id(parameter): name for name, parameter in scales.items()}
    for optimizer in optimizers:
        for group in list(optimizer.param_groups):
            own = [p for p in group['params'] if id(p) in names]
            if not own:
                continue
            if len(own) == len(group['params']):
                moved = group
            else:
                moved = {k: v for k, v in group.items() if k != 'params'}
                moved['params'] = own
                group['params'] = [
                    p for p in group['params'] if id(p) not in names
                ]
                optimizer.add_param_group(moved)
            moved['weight_decay'] = 0.0
            moved['lr'] = group['lr'] * lr_mult
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
    """Two groups for a torch optimizer: the model's, and the scales'.

    Args:
        model (nn.Module): A converted model.
        **options: Options of the first group, ``lr`` and ``weight_decay``
            say; the second has the same but no weight decay.

    Returns:
        list[dict]: Parameter groups.
    """
    scales = list(quantizer_parameters(model).values())
    own = {id(parameter) for parameter in scales}
    rest = [p for p in model.parameters() if id(p) not in own]
    return [
        dict(params=rest, **options),
        dict(params=scales, **{**options, 'weight_decay': 0.0}),
    ]
