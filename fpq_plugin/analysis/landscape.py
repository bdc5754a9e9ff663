"""Slices of the loss landscape along filter-normalised directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .batches import Batch, image_shares
from .measuring import (
    ProgressBar,
    attention_as_layers,
    left_unchanged,
    values_restored,
    weighted_layers,
)


@attention_as_layers
def loss_slice(model: nn.Module,
               batches: Sequence[Batch],
               steps: Sequence[float],
               axes: int = 1,
               layers: Sequence[str] | None = None,
               seed: int = 0,
               progress: bool = False) -> Tensor:
    """The mean task loss along one or two random directions.

    The latent weights move; scales and batch norm stay. The same seed gives
    the same draws for any model of the architecture.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        steps (Sequence[float]): Positions on each axis; 1 is a move as long,
            filter by filter, as the weights themselves.
        axes (int): 1 or 2. Defaults to 1.
        layers (Sequence[str], optional): Name patterns of the layers that
            move. Defaults to None, all that can be quantized.
        seed (int): Seed of the directions. Defaults to 0.
        progress (bool): Whether to show a bar. Defaults to False.

    Returns:
        Tensor: Losses of shape (n, ) or (n, n), float64.

    Raises:
        ValueError: If ``axes`` is neither, or a pattern matches no layer.
    """
    if axes not in (1, 2):
        raise ValueError(f'axes must be 1 or 2, got {axes!r}')
    weights = [w.weight for w in weighted_layers(model, layers).values()]
    steps = torch.as_tensor(steps, dtype=torch.float64)
    places = torch.cartesian_prod(*[steps] * axes).view(-1, axes)
    losses = []
    with left_unchanged(model, seed), ProgressBar(
            f'{axes}-D slice of the loss', len(places), 'points',
            progress) as bar:
        directions = [filter_normalised(weights) for _ in range(axes)]
        for place in places.tolist():
            with values_restored(weights):
                for direction, length in zip(directions, place):
                    for weight, part in zip(weights, direction):
                        weight.data.add_(part, alpha=length)
                losses.append(mean_loss(model, batches))
            bar.step()
    return torch.tensor(
        losses, dtype=torch.float64).view([len(steps)] * axes)


def mean_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The task loss over all images, the model as it is.

    Args:
        model (nn.Module): The model, in the mode that is asked about.
        batches (Sequence[Batch]): The data.

    Returns:
        float: In units of the loss.
    """
    with torch.no_grad():
        return sum(
            share * float(batch.loss(model))
            for batch, share in zip(batches, image_shares(batches)))


def filter_normalised(weights: Sequence[Tensor]) -> list[Tensor]:
    """A random direction whose filters have the norms of the weights'.

    After Li et al. (NeurIPS 2018): without it, a network whose weights are
    scaled up would look flatter than the same network unscaled.

    Args:
        weights (Sequence[Tensor]): Weights, (outputs, ...) each.

    Returns:
        list[Tensor]: One tensor for each, of its shape.
    """
    directions = []
    for weight in weights:
        direction = torch.randn_like(weight)
        norms = weight.detach().flatten(1).norm(dim=1)
        factor = norms / direction.flatten(1).norm(dim=1)
        directions.append(
            direction * factor.view(-1, *[1] * (weight.dim() - 1)))
    return directions
