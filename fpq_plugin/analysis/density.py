"""The density of the Hessian's eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .batch import Batch
from .progress import Progress
from .quiet import quiet
from .routed import measured_routed
from .weighted_layers import weighted_layers


@dataclass(frozen=True)
class SpectralDensity:
    """``p(x) = 1/d sum_i delta(x - lambda_i)``, smoothed.

    Attributes:
        grid (Tensor): Values of x, ascending, float64.
        density (Tensor): p at them.
    """

    grid: Tensor
    density: Tensor


@measured_routed
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
    bar = Progress('spectral density', vectors * repeats * len(batches),
                   progress)
    with quiet(model, seed, weights):
        grid, density = lanczos_approximate_spectrum(
            SurrogateHessian(model, weights, batches, bar.step),
            vectors,
            num_repeats=repeats,
            boundaries=bounds)
    bar.end()
    return SpectralDensity(grid.double().cpu(), density.double().cpu())
