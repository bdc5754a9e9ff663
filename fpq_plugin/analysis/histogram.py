"""The distribution of a layer's features in several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch
from .layer_outputs import layer_output

BINS = 100
TAIL = 1e-3


@dataclass(frozen=True)
class Histograms:
    """Densities on the same bins.

    Attributes:
        edges (Tensor): Edges of the bins, (bins + 1, ).
        densities (dict[str, Tensor]): By model, (bins, ); a value beyond
            the edges counts in no bin.
    """

    edges: Tensor
    densities: dict[str, Tensor]


def feature_histograms(models: Mapping[str, nn.Module],
                       batches: Mapping[str, Sequence[Batch]],
                       name: str) -> Histograms:
    """Histograms of the layer ``name``'s output, as in Fig. 4.

    The bins span all models' values but the outermost 0.1 % of each end.

    Args:
        models (Mapping[str, nn.Module]): Models by label.
        batches (Mapping[str, Sequence[Batch]]): Each model's data.
        name (str): The layer's name.

    Raises:
        ValueError: If a model does not call the layer.
    """
    values = {
        label: layer_output(model, batches[label], name).flatten().double()
        for label, model in models.items()
    }
    low = min(_quantile(v, TAIL) for v in values.values())
    high = max(_quantile(v, 1 - TAIL) for v in values.values())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    width = (high - low) / BINS
    return Histograms(
        edges, {
            label: torch.histc(v, BINS, low, high) / (len(v) * width)
            for label, v in values.items()
        })


def _quantile(values: Tensor, part: float) -> float:
    place = min(int(part * len(values)) + 1, len(values))
    return float(values.kthvalue(place).values)
