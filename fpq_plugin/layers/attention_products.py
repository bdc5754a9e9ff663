"""The products of activations in attention: q k^T, and attn v."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MATMULS = frozenset(['matmul', '__matmul__', 'bmm'])


class AttentionProducts(nn.Module):
    """Quantizers of the operands of an attention's two products.

    Args:
        query (nn.Module): Quantizer of the first product's left operand.
        key (nn.Module): Quantizer of its right operand.
        weights (nn.Module): Quantizer of the second product's left operand,
            the attention weights.
        value (nn.Module): Quantizer of its right operand.
    """

    def __init__(self, query: nn.Module, key: nn.Module, weights: nn.Module,
                 value: nn.Module) -> None:
        super().__init__()
        self.query, self.key = query, key
        self.weights, self.value = weights, value
        for quantizer in self.children():
            quantizer.over_batch = True

    def first(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize the operands of q k^T."""
        return self.query(q), self.key(k)

    def second(self, weights: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize the operands of attn v."""
        return self.weights(weights), self.value(v)


class ProductCalls:
    """Quantizes the products in one forward of an attention module.

    Args:
        products (AttentionProducts): The quantizers; the first product of
            two activations is q k^T, the second attn v.
    """

    def __init__(self, products: AttentionProducts) -> None:
        self.products = products
        self._calls = 0

    def takes(self, func: Any, args: tuple) -> bool:
        """Whether a call is a product of two activations."""
        if func is F.scaled_dot_product_attention:
            return True
        return (getattr(func, '__name__', '') in _MATMULS and len(args) == 2
                and not any(isinstance(x, nn.Parameter) for x in args))

    def __call__(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        """The product of quantized operands."""
        if func is F.scaled_dot_product_attention:
            return _attend_like_torch(*args, **kwargs, products=self.products)
        self._calls += 1
        quantize = (self.products.first
                    if self._calls % 2 else self.products.second)
        return func(*quantize(*args))


def attend(q: Tensor,
           k: Tensor,
           v: Tensor,
           mask: Tensor | None,
           dropout: float,
           need_weights: bool,
           products: AttentionProducts | None,
           scale: float | None = None) -> tuple[Tensor, Tensor | None]:
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
        scale (float, optional): Factor on the scores. Defaults to None,
            1 / sqrt(C).

    Returns:
        tuple: Output (..., L, C_v) and the weights (..., L, S) or None.
    """
    if products is None and not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
    scale = q.shape[-1]**-0.5 if scale is None else scale
    if products is not None:
        q, k = products.first(q, k)
    scores = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    weights = F.dropout(scores.softmax(-1), dropout)
    operands = weights, v
    if products is not None:
        operands = products.second(*operands)
    return operands[0] @ operands[1], weights if need_weights else None


def _attend_like_torch(query: Tensor,
                       key: Tensor,
                       value: Tensor,
                       attn_mask: Tensor | None = None,
                       dropout_p: float = 0.0,
                       is_causal: bool = False,
                       scale: float | None = None,
                       *,
                       products: AttentionProducts) -> Tensor:
    """``F.scaled_dot_product_attention`` on quantized operands."""
    if is_causal:
        attn_mask = query.new_ones(
            query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = query.new_zeros(attn_mask.shape).masked_fill(
            ~attn_mask, -float('inf'))
    return attend(query, key, value, attn_mask, dropout_p, False, products,
                  scale)[0]
