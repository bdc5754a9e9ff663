"""The range that a quantizer of few bits loses least with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Shares of the full range that are tried.
SHARES = 64
# So many elements of a row speak for it.
SAMPLE = 2**16


def mse_range(low: Tensor, high: Tensor, rows: Tensor,
              quantize: Callable[[Tensor, Tensor, Tensor], Tensor]
              ) -> tuple[Tensor, Tensor]:
    """Shrink ranges to where the mean squared quantization error is least.

    Tried are ``k / 64`` of ``[low, high]``, k = 1 to 64, the same for both
    ends, so that a quantizer that holds the whole range is among them. Of
    rows longer than 65,536 so many elements, the same in each call, count.

    Args:
        low (Tensor): Lowest value of each row, of shape (C,).
        high (Tensor): Highest value of each row, of shape (C,).
        rows (Tensor): The values, of shape (C, n).
        quantize (Callable): Of rows, lowest and highest value to hold the
            quantized rows.

    Returns:
        tuple: The shrunk ``low`` and ``high``, each of shape (C,).
    """
    if rows.shape[1] > SAMPLE:
        same = torch.Generator().manual_seed(0)
        chosen = torch.randint(rows.shape[1], (SAMPLE, ), generator=same)
        rows = rows[:, chosen.to(rows.device)]
    least = torch.full_like(low, torch.inf)
    best = torch.ones_like(low)
    for k in range(SHARES, 0, -1):
        share = k / SHARES
        error = (quantize(rows, low * share, high * share) - rows).square()
        error = error.mean(dim=1)
        best = torch.where(error < least, share, best)
        least = torch.minimum(error, least)
    return low * best, high * best
