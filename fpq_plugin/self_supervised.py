"""What mmpretrain's self-supervised models need: views, masks, targets."""

from __future__ import annotations

from mmengine.model import BaseAveragedModel
from torch import nn


def is_self_supervised(model: nn.Module) -> bool:
    """Whether ``model`` is one of mmpretrain's ``BaseSelfSupervisor``.

    Only its forward with ``mode='loss'`` takes a batch as it is: several
    views of an image, or an image with a mask to draw or to apply.
    """
    return any(kind.__name__ == 'BaseSelfSupervisor'
               for kind in type(model).__mro__)


def targets(model: nn.Module) -> list[str]:
    """Patterns of the modules that make a self-supervised model's targets.

    They are not what is trained or shipped, so they stay as they are.
    """
    if (is_self_supervised(model)
            and isinstance(model.target_generator, nn.Module)
            and next(model.target_generator.parameters(), None) is not None):
        return ['target_generator']
    return []


def refuse_averaged(model: nn.Module) -> None:
    """Stop before a model is converted that averages its own weights.

    BYOL, MoCo and their like pair the parameters of two encoders by their
    order. Scales of unlike bits would be averaged without a word.

    Raises:
        ValueError: If a submodule is an average of another.
    """
    averages = [name for name, module in model.named_modules()
                if isinstance(module, BaseAveragedModel)]
    if hasattr(model, 'momentum_update'):  # CAE's own average
        averages.append('teacher')
    if averages:
        raise ValueError(
            f'FPQ cannot quantize {type(model).__name__}: its '
            f'{averages[0]!r} is a moving average of its own weights. '
            'Train it in full precision, and quantize the model that is '
            'fine-tuned from it.')
