"""The Hessian's trace, its outermost eigenvalues and its spectral density.

The Hessian is that of the task loss in the latent weights, whose trace FPQ
(arXiv 2503.11159) keeps low: equation (7) there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .batches import Batch, image_shares
from .measuring import (
    Estimate,
    ProgressBar,
    attention_as_layers,
    left_unchanged,
    weighted_layers,
)

MAX_ELEMENTS = 2**26
"""Most elements that the probes of one product have."""


@dataclass(frozen=True)
class HessianTrace:
    """Trace of the task loss's Hessian, the paper's equation (7).

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


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue as Lanczos found it.

    Attributes:
        value (float): The Ritz value.
        error (float): Norm of the residual ``H u - value u`` with unit u: an
            eigenvalue of the symmetric H is at most that far.
    """

    value: float
    error: float


@dataclass(frozen=True)
class SpectralDensity:
    """``p(x) = 1/d sum_i delta(x - lambda_i)``, smoothed.

    Attributes:
        grid (Tensor): Values of x, ascending, float64.
        density (Tensor): p at them.
    """

    grid: Tensor
    density: Tensor


@attention_as_layers
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
    chunks = list(_probe_chunks(probes, sum(sizes)))
    products = len(batches) * (2 * (sketch > 0) + len(chunks))
    with left_unchanged(model, seed, weights), ProgressBar(
            'Hessian trace', products, 'products', progress) as bar:
        basis = _low_rank_part(
            SurrogateHessian(model, weights, batches, bar.step), sketch)
        exact = _sum_by_layer(
            (basis[1] * basis[0]).sum(1, keepdim=True), sizes)
        # (batches, layers, probes)
        samples = torch.zeros(
            len(batches), len(sizes), probes, dtype=torch.float64)
        start = 0
        for chunk in chunks:
            v = _random_signs(weights, chunk)
            low_rank = basis[1] @ (basis[0].T @ v)
            for number, batch in enumerate(batches):
                operator = SurrogateHessian(model, weights, [batch], bar.step)
                samples[number, :, start:start + chunk] = _sum_by_layer(
                    v * (operator @ v - low_rank), sizes) + exact
            start += chunk
    return _summary(list(found), samples,
                    torch.tensor(image_shares(batches), dtype=torch.float64))


@attention_as_layers
def top_eigenvalues(model: nn.Module,
                    batches: Sequence[Batch],
                    k: int = 5,
                    smallest: bool = False,
                    layers: Sequence[str] | None = None,
                    tolerance: float = 1e-3,
                    seed: int = 0,
                    progress: bool = False) -> list[Eigenvalue]:
    """The ``k`` largest eigenvalues of the task loss's Hessian.

    curvlinops's operator in SciPy's implicitly restarted Lanczos iteration.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        k (int): How many. Defaults to 5.
        smallest (bool): Whether the lowest instead. Defaults to False.
        layers (Sequence[str], optional): Name patterns of the layers whose
            weights count. Defaults to None, all that can be quantized.
        tolerance (float): Relative accuracy asked for. Defaults to 1e-3.
        seed (int): Seed of the start vector. Defaults to 0.
        progress (bool): Whether to show a bar. Defaults to False.

    Returns:
        list[Eigenvalue]: Outermost first.

    Raises:
        ValueError: If a pattern matches no layer.
        ImportError: If curvlinops is missing.
    """
    from scipy.sparse.linalg import eigsh

    from .hessian import SurrogateHessian

    weights = [w.weight for w in weighted_layers(model, layers).values()]
    name = 'lowest' if smallest else 'top'
    with left_unchanged(model, seed, weights), ProgressBar(
            f'{name} eigenvalues', None, 'products', progress) as bar:
        hessian = SurrogateHessian(model, weights, batches, bar.step)
        operator = hessian.to_scipy()
        start = torch.randn(operator.shape[0]).double().numpy()
        values, vectors = eigsh(
            operator, k=k, which='SA' if smallest else 'LA', v0=start,
            tol=tolerance)
        residuals = np.linalg.norm(
            operator @ vectors - values * vectors, axis=0)
    found = sorted(zip(values, residuals), reverse=not smallest)
    return [Eigenvalue(float(v), float(r)) for v, r in found]


@attention_as_layers
def spectral_density(model: nn.Module,
                     batches: Sequence[Batch],
                     bounds: tuple[float, float],
                     vectors: int = 32,
                     repeats: int = 1,
                     layers: Sequence[str] | None = None,
                     seed: int = 0,
                     progress: bool = False) -> SpectralDensity:
    """Approximate the spectrum by curvlinops's Lanczos quadrature.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        bounds (tuple): Lowest and highest eigenvalue, see
            :func:`top_eigenvalues`.
        vectors (int): Lanczos vectors, the number of bumps. Defaults to 32.
        repeats (int): Random starts to average over. Defaults to 1.
        layers (Sequence[str], optional): Name patterns of the layers whose
            weights count. Defaults to None, all that can be quantized.
        seed (int): Seed of the starts. Defaults to 0.
        progress (bool): Whether to show a bar. Defaults to False.

    Returns:
        SpectralDensity: On 1,024 points from bound to bound and 5 % beyond.

    Raises:
        ValueError: If a pattern matches no layer.
        ImportError: If curvlinops is missing.
    """
    from curvlinops import lanczos_approximate_spectrum

    from .hessian import SurrogateHessian

    weights = [w.weight for w in weighted_layers(model, layers).values()]
    products = vectors * repeats * len(batches)
    with left_unchanged(model, seed, weights), ProgressBar(
            'spectral density', products, 'products', progress) as bar:
        grid, density = lanczos_approximate_spectrum(
            SurrogateHessian(model, weights, batches, bar.step),
            vectors,
            num_repeats=repeats,
            boundaries=bounds)
    return SpectralDensity(grid.double().cpu(), density.double().cpu())


def _probe_chunks(probes: int, size: int) -> Iterator[int]:
    most = max(MAX_ELEMENTS // size, 1)
    while probes > 0:
        yield min(most, probes)
        probes -= most


def _random_signs(weights: Sequence[Tensor], number: int) -> Tensor:
    from curvlinops.sampling import random_vector

    size, like = sum(w.numel() for w in weights), weights[0]
    return torch.stack([
        random_vector(size, 'rademacher', like.device, like.dtype)
        for _ in range(number)
    ], 1)


def _low_rank_part(hessian, columns: int) -> tuple[Tensor, Tensor]:
    """Q, and ``Q (Q^T H Q)``, of shape (weights, columns) each."""
    weights = hessian._params
    if columns == 0:
        empty = weights[0].new_zeros(hessian.shape[0], 0)
        return empty, empty
    basis, _ = torch.linalg.qr(hessian @ _random_signs(weights, columns))
    return basis, basis @ (basis.T @ (hessian @ basis))


def _sum_by_layer(values: Tensor, sizes: list[int]) -> Tensor:
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
        Estimate.from_samples(by_layer.sum(0)),
        {name: Estimate.from_samples(row)
         for name, row in zip(names, by_layer)}, error)
