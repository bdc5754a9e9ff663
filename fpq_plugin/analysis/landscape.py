"""Slices of the loss landscape along filter-normalised directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .batches import Batch, shares
from .measuring import Progress, measured_routed, quiet, weighted_layers


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


@measured_routed
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
    bar = Progress(f'{axes}-D slice of the loss', len(places), progress)
    losses = []
    with quiet(model, seed):
        directions = [filter_normalised(weights) for _ in range(axes)]
        for place in places.tolist():
            with _moved(weights, directions, place):
                losses.append(mean_loss(model, batches))
            bar.step()
    bar.end()
    return torch.tensor(
        losses, dtype=torch.float64).view([len(steps)] * axes)


def mean_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The task loss over all images, the model as it is."""
    with torch.no_grad():
        return sum(share * float(batch.loss(model))
                   for batch, share in zip(batches, shares(batches)))


@contextmanager
def _moved(weights: Sequence[nn.Parameter],
           directions: Sequence[Sequence[Tensor]],
           place: Sequence[float]) -> Iterator[None]:
    kept = [weight.detach().clone() for weight in weights]
    try:
        for direction, length in zip(directions, place):
            for weight, part in zip(weights, direction):
                weight.data.add_(part, alpha=length)
        yield
    finally:
        for weight, old in zip(weights, kept):
            weight.data.copy_(old)
