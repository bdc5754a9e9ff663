"""The Hessian's trace, whole and per layer, by Hutchinson's estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch, shares
from .estimate import Estimate
from .progress import Progress
from .quiet import quiet
from .weighted_layers import weighted_layers


@dataclass(frozen=True)
class HessianTrace:
    """Trace of the task loss's Hessian, the quantity of equation (7).

    Attributes:
        total (Estimate): Whole trace; the error is that of the probes, on
            the given batches.
        layers (dict[str, Estimate]): The trace of each layer's diagonal
            block. They sum up to the whole.
        data_error (float): Standard error of the whole over batches: what
            other images would change. 0.0 of a single batch.
    """

    total: Estimate
    layers: dict[str, Estimate]
    data_error: float


def hessian_trace(model: nn.Module,
                  batches: Sequence[Batch],
                  probes: int = 16,
                  layers: Sequence[str] | None = None,
                  seed: int = 0,
                  progress: bool = False) -> HessianTrace:
    """Estimate ``Tr(H)`` of the mean task loss in the latent weights.

    With v of independent signs, ``E[v_l . (H v)_l]`` is the trace of layer
    l's block. The same seed gives the same probes for any model of the
    architecture.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        probes (int): Number of vectors. Defaults to 16.
        layers (Sequence[str], optional): Name patterns of the layers whose
            weights count. Defaults to None, all that can be quantized.
        seed (int): Seed of the probes. Defaults to 0.
        progress (bool): Whether to show a bar. Defaults to False.

    Returns:
        HessianTrace: In units of the loss over the weights' squared.

    Raises:
        ValueError: If a pattern matches no layer.
        ImportError: If curvlinops is missing.
    """
    from curvlinops.sampling import random_vector

    from .hessian import SurrogateHessian

    found = weighted_layers(model, layers)
    weights = [layer.weight for layer in found.values()]
    bar = Progress('Hessian trace', len(batches), progress)
    # (batches, layers, probes)
    samples = []
    with quiet(model, seed, weights):
        signs = [
            torch.stack([
                random_vector(w.numel(), 'rademacher', w.device,
                              w.dtype).view_as(w) for _ in range(probes)
            ], -1) for w in weights
        ]
        for batch in batches:
            product = SurrogateHessian(model, weights, [batch]) @ signs
            samples.append(
                torch.stack([(v * hv).flatten(0, -2).double().sum(0)
                             for v, hv in zip(signs, product)]).cpu())
            bar.step()
    bar.end()
    return _summary(list(found), torch.stack(samples),
                    torch.tensor(shares(batches), dtype=torch.float64))


def _summary(names: list[str], samples: Tensor,
             share: Tensor) -> HessianTrace:
    by_layer = torch.einsum('b,blp->lp', share, samples)
    by_batch = samples.sum(1).mean(-1)
    mean = by_batch @ share
    error = 0.0
    if len(share) > 1:
        spread = (share * (by_batch - mean)).square().sum()
        error = float((spread * len(share) / (len(share) - 1)).sqrt())
    return HessianTrace(
        Estimate.of(by_layer.sum(0)),
        {name: Estimate.of(row)
         for name, row in zip(names, by_layer)}, error)
