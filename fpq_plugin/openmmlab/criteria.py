"""The losses that a config's ``distillation`` names."""

from __future__ import annotations

from torch import nn

from ..options import build, resolve


def criteria(distillation: dict | list[dict] | None) -> list[nn.Module]:
    """Build the losses of ``fpq.distillation``.

    Args:
        distillation (dict | list[dict], optional): One loss, several or none.

    Returns:
        list[nn.Module]: What :class:`~fpq_plugin.Distiller` takes.

    Raises:
        ValueError: If one is unknown, or no loss of two layers' outputs.
    """
    given = (distillation if isinstance(distillation, (list, tuple)) else
             [distillation])
    built = []
    for each in given:
        cfg = resolve('distillation', each, 'CSDLoss')
        if cfg is None:
            continue
        criterion = build('distillation', cfg)
        if not hasattr(criterion, 'last_layer_only'):
            raise ValueError(f'distillation.type: {cfg["type"]!r} is no loss '
                             "of two layers' outputs: it has no "
                             'last_layer_only')
        built.append(criterion)
    return built
