"""Range and mean of each channel of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .batch import Batch
from .layer_outputs import layer_output


@dataclass(frozen=True)
class ChannelRanges:
    """Statistics of a layer's output, each of shape (channels, ).

    Attributes:
        low (Tensor): Minimum over images and space.
        high (Tensor): Maximum.
        mean (Tensor): Mean.
    """

    low: Tensor
    high: Tensor
    mean: Tensor


def channel_ranges(model: nn.Module, batches: Sequence[Batch],
                   name: str) -> ChannelRanges:
    """Each channel's range and mean at the layer ``name``, as in Fig. 3.

    Raises:
        ValueError: If the model does not call the layer.
    """
    output = layer_output(model, batches, name)
    low, high = output.aminmax(dim=1)
    return ChannelRanges(low, high, output.mean(1))
