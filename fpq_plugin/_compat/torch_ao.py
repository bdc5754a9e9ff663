"""torch.ao's base class of fake quantizers, also where torch has none.

``torch.ao.quantization`` is deprecated. Where it exists FPQ's fake quantizers
are of its class, so that they fit into its workflows. Where it is gone a class
with the same switches stands in, and all else works as before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

try:
    from torch.ao.quantization import FakeQuantizeBase
    HAS_TORCH_AO = True
except ImportError:
    HAS_TORCH_AO = False

    class FakeQuantizeBase(nn.Module):  # type: ignore[no-redef]
        """The switches of torch.ao's class, as buffers."""

        fake_quant_enabled: Tensor
        observer_enabled: Tensor

        def __init__(self) -> None:
            super().__init__()
            for name in ('fake_quant_enabled', 'observer_enabled'):
                self.register_buffer(name,
                                     torch.tensor([1], dtype=torch.uint8))

        def enable_observer(self, enabled: bool = True) -> None:
            """Switch the observer on or off."""
            self.observer_enabled.fill_(int(enabled))


def require_torch_ao(name: str, instead: str) -> None:
    """Refuse to go on where torch has no ``torch.ao.quantization``.

    Args:
        name (str): What needs it.
        instead (str): What to take in its place.

    Raises:
        ImportError: Naming this torch, and the way out.
    """
    if not HAS_TORCH_AO:
        raise ImportError(f'{name} needs torch.ao.quantization, which torch '
                          f'{torch.__version__} does not have: {instead}')
