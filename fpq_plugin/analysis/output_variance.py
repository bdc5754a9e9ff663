"""How far the output moves under Gaussian noise on the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch
from .estimate import Estimate
from .progress import Progress
from .quiet import quiet

SIGMAS = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class OutputVariance:
    """Variance of the output over draws of input noise, as in Fig. 1.

    Attributes:
        sigmas (tuple): Standard deviations of the noise, in units of the
            preprocessed input.
        variances (tuple[Estimate]): Variance over draws, mean over outputs
            and images; the error is over images.
        clean (float): Variance of the noiseless output over images, mean
            over outputs: the scale to see the others on.
    """

    sigmas: tuple[float, ...]
    variances: tuple[Estimate, ...]
    clean: float


def output_variance(model: nn.Module,
                    batches: Sequence[Batch],
                    sigmas: Sequence[float] = SIGMAS,
                    draws: int = 8,
                    seed: int = 0,
                    progress: bool = False) -> OutputVariance:
    """Measure the output's variance under Gaussian input noise.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        sigmas (Sequence[float]): Standard deviations of the noise. Defaults
            to 0.05, 0.1, 0.2 and 0.4.
        draws (int): Draws per image and sigma, at least 2. Defaults to 8.
        seed (int): Seed of the noise. Defaults to 0.
        progress (bool): Whether to show a bar. Defaults to False.

    Returns:
        OutputVariance: In units of the output squared.
    """
    bar = Progress('output variance under input noise',
                   len(sigmas) * len(batches), progress)
    variances = []
    with quiet(model, seed):
        clean = torch.cat([batch.output(model) for batch in batches])
        for sigma in sigmas:
            by_image = []
            for batch in batches:
                outputs = torch.stack([
                    batch.output(model, _noisy(batch.inputs, sigma))
                    for _ in range(draws)
                ])
                by_image.append(outputs.double().var(0).mean(1))
                bar.step()
            variances.append(Estimate.of(torch.cat(by_image).cpu()))
    bar.end()
    return OutputVariance(
        tuple(sigmas), tuple(variances),
        float(clean.double().var(0).mean()))


def _noisy(inputs: Tensor, sigma: float) -> Tensor:
    return inputs + sigma * torch.randn_like(inputs)
