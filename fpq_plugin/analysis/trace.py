"""The Hessian's trace, whole and per layer, by Hutchinson's estimator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch, shares
from .estimate import Estimate
from .progress import Progress
from .quiet import quiet
from .routed import measured_routed
from .weighted_layers import weighted_layers

MAX_ELEMENTS = 2**26
"""Most elements that the probes of one product have."""


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


@measured_routed
def hessian_trace(model: nn.Module,
                  batches: Sequence[Batch],
                  probes: int = 16,
                  sketch: int = 8,
                  layers: Sequence[str] | None = None,
                  seed: int = 0,
                  progress: bool = False) -> HessianTrace:
    """Estimate ``Tr(H)`` of the mean task loss in the latent weights.

    With v of independent signs, ``E[v_l . (H v)_l]`` is the trace of layer
    l's block. A few large eigenvalues make most of its variance, so, as in
    Hutch++ (Meyer et al., 2021), the part of H in the span of ``sketch``
    random vectors' images, ``A = Q (Q^T H Q) Q^T``, is traced exactly and
    ``H - A`` by probes. That takes ``2 sketch + probes`` products with H. The
    same seed gives the same probes for any model of the architecture.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        probes (int): Number of vectors v. Defaults to 16.
        sketch (int): Columns of Q; 0 is Hutchinson's own estimator. Defaults
            to 8.
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
    from .hessian import SurrogateHessian

    found = weighted_layers(model, layers)
    weights = [layer.weight for layer in found.values()]
    sizes = [w.numel() for w in weights]
    chunks = list(_chunks(probes, sum(sizes)))
    bar = Progress('Hessian trace: products with batches',
                   len(batches) * (2 * (sketch > 0) + len(chunks)), progress)
    with quiet(model, seed, weights):
        basis = _sketch(
            SurrogateHessian(model, weights, batches, bar.step), sketch)
        exact = _by_layer((basis[1] * basis[0]).sum(1, keepdim=True), sizes)
        # (batches, layers, probes)
        samples = torch.zeros(
            len(batches), len(sizes), probes, dtype=torch.float64)
        start = 0
        for chunk in chunks:
            v = _signs(weights, chunk)
            low_rank = basis[1] @ (basis[0].T @ v)
            for number, batch in enumerate(batches):
                operator = SurrogateHessian(model, weights, [batch], bar.step)
                samples[number, :, start:start + chunk] = _by_layer(
                    v * (operator @ v - low_rank), sizes) + exact
            start += chunk
    bar.end()
    return _summary(list(found), samples,
                    torch.tensor(shares(batches), dtype=torch.float64))


def _chunks(probes: int, size: int) -> Iterator[int]:
    most = max(MAX_ELEMENTS // size, 1)
    while probes > 0:
        yield min(most, probes)
        probes -= most


def _signs(weights: Sequence[Tensor], number: int) -> Tensor:
    from curvlinops.sampling import random_vector

    size, like = sum(w.numel() for w in weights), weights[0]
    return torch.stack([
        random_vector(size, 'rademacher', like.device, like.dtype)
        for _ in range(number)
    ], 1)


def _sketch(hessian, columns: int) -> tuple[Tensor, Tensor]:
    """Q, and ``Q (Q^T H Q)``, of shape (weights, columns) each."""
    weights = hessian._params
    if columns == 0:
        empty = weights[0].new_zeros(hessian.shape[0], 0)
        return empty, empty
    basis, _ = torch.linalg.qr(hessian @ _signs(weights, columns))
    return basis, basis @ (basis.T @ (hessian @ basis))


def _by_layer(values: Tensor, sizes: list[int]) -> Tensor:
    """(weights, probes) summed over each layer's weights."""
    return torch.stack(
        [part.double().sum(0) for part in values.split(sizes)]).cpu()


def _summary(names: list[str], samples: Tensor,
             share: Tensor) -> HessianTrace:
    by_layer = torch.einsum('b,blp->lp', share, samples)
    by_batch = samples.sum(1).mean(-1)
    error = 0.0
    if len(share) > 1:
        spread = (share * (by_batch - by_batch @ share)).square().sum()
        error = float((spread * len(share) / (len(share) - 1)).sqrt())
    return HessianTrace(
        Estimate.of(by_layer.sum(0)),
        {name: Estimate.of(row)
         for name, row in zip(names, by_layer)}, error)
