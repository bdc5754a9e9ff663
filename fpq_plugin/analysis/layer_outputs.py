"""The maps that a layer's linear operation gives, what CSD compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .batch import Batch
from .quiet import quiet
from .routed import measured_routed
from .weighted_layers import layer_kind


@measured_routed
def layer_output(model: nn.Module, batches: Sequence[Batch],
                 name: str) -> Tensor:
    """Outputs of one layer over all batches, channels first.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        name (str): The layer's name.

    Returns:
        Tensor: (channels, values), on the CPU.

    Raises:
        ValueError: If the layer is of no type that can be quantized, or the
            model does not call it.
    """
    seen: list[Tensor] = []
    layer = model.get_submodule(name)
    axis = layer_kind(layer, name).channel_axis

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        output = getattr(output, 'value', output).detach()
        seen.append(output.movedim(axis, 0).flatten(1).cpu())

    handle = layer.register_forward_hook(keep)
    try:
        with quiet(model, 0):
            for batch in batches:
                batch.output(model)
    finally:
        handle.remove()
    if not seen:
        raise ValueError(f'the model does not call the layer {name!r}')
    return torch.cat(seen, dim=1)
