"""The products of activations in attention: q k^T, and attn v."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def attend(q: Tensor,
           k: Tensor,
           v: Tensor,
           mask: Tensor | None,
           dropout: float,
           need_weights: bool,
           products: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Scaled dot product attention, its operands quantized if asked.

    Args:
        q (Tensor): Queries (..., L, C).
        k (Tensor): Keys (..., S, C).
        v (Tensor): Values (..., S, C_v).
        mask (Tensor, optional): Added to the scores, broadcasts to
            (..., L, S).
        dropout (float): Probability that a weight is dropped.
        need_weights (bool): Whether to return the weights.
        products (AttentionProducts, optional): The operands' quantizers.

    Returns:
        tuple: Output (..., L, C_v) and the weights (..., L, S) or None.
    """
    if products is None and not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
    if products is not None:
        q, k = products.first(q, k)
    scores = (q * q.shape[-1]**-0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    weights = F.dropout(scores.softmax(-1), dropout)
    operands = weights, v
    if products is not None:
        operands = products.second(*operands)
    return operands[0] @ operands[1], weights if need_weights else None
