"""The Hessian's outermost eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .batch import Batch
from .progress import Progress
from .quiet import quiet
from .routed import measured_routed
from .weighted_layers import weighted_layers


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


@measured_routed
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
    bar = Progress(f'{name} eigenvalues: products with a batch', 0, progress)
    with quiet(model, seed, weights):
        hessian = SurrogateHessian(model, weights, batches, bar.step)
        operator = hessian.to_scipy()
        start = torch.randn(operator.shape[0]).double().numpy()
        values, vectors = eigsh(
            operator, k=k, which='SA' if smallest else 'LA', v0=start,
            tol=tolerance)
        residuals = np.linalg.norm(
            operator @ vectors - values * vectors, axis=0)
    bar.end()
    found = sorted(zip(values, residuals), reverse=not smallest)
    return [Eigenvalue(float(v), float(r)) for v, r in found]
