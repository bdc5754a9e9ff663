"""``nn.MultiheadAttention`` whose projections are layers.

torch computes them in one function from the module's parameters
(``in_proj_weight``, ``out_proj.weight``) and calls no layer. Routed, it has
a layer for each input projection beside the parameters, and calls
``out_proj``. ``nn.TransformerEncoder`` would hand it nested tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._compat.tracing import whole_call
from .attention_products import attend
from .quantized_layer import QuantizedLayer, register_layer
from .routing import RoutedModule, register_routed


class InProjection(nn.Module):
    """A view of an attention's input projection as a linear layer.

    It owns no parameter: names in checkpoints stay torch's.

    Args:
        attention (nn.MultiheadAttention): Whose projection.
        weight_name (str): Its parameter, (rows, features).
        first (int): First row of ``attention.in_proj_bias`` that belongs to
            it.
    """

    def __init__(self, attention: nn.MultiheadAttention, weight_name: str,
                 first: int) -> None:
        super().__init__()
        # In a list it is no submodule, and a deep copy points to the copy.
        self._attention = [attention]
        self._weight_name = weight_name
        self._first = first
        self.train(attention.training)

    @property
    def weight(self) -> Tensor:
        """The projection's weight, a parameter of the attention."""
        return getattr(self._attention[0], self._weight_name)

    @property
    def bias(self) -> Tensor | None:
        """The projection's bias."""
        bias = self._attention[0].in_proj_bias
        if bias is None:
            return None
        return bias[self._first:self._first + self.weight.shape[0]]

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Project ``x`` (..., features) by some rows of the weight."""
        return linear_rows(x, self.weight, self.bias, rows)


def linear_rows(x: Tensor, weight: Tensor, bias: Tensor | None,
                rows: slice) -> Tensor:
    """``F.linear`` with some rows of weight and bias."""
    return F.linear(x, weight[rows], None if bias is None else bias[rows])


@register_layer(InProjection)
class QuantizedInProjection(QuantizedLayer, InProjection):
    """An attention's input projection on quantized input and weight."""

    channel_axis = -1

    def weight_source(self) -> tuple[nn.Module, str]:
        return self._attention[0], self._weight_name

    def op(self,
           x: Tensor,
           weight: Tensor,
           rows: slice = slice(None)) -> Tensor:
        return linear_rows(x, weight, self.bias, rows)


@register_routed(nn.MultiheadAttention)
class RoutedMultiheadAttention(RoutedModule, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that calls a layer for each projection.

    With one weight for query, key and value the layer is ``in_projection``;
    with three they are ``q_projection``, ``k_projection``, ``v_projection``.
    """

    @classmethod
    def enter(cls, module: nn.MultiheadAttention) -> None:
        packed = module.in_proj_weight is not None
        names = ('in', ) if packed else ('q', 'k', 'v')
        for number, name in enumerate(names):
            module.add_module(
                f'{name}_projection',
                InProjection(module, f'{name}_proj_weight',
                             number * module.embed_dim))
        # torch's fused transformer layers read the weights, and look at this.
        module._qkv_same_embed_dim = False
        super().enter(module)

    def leave(self) -> None:
        packed = self.in_proj_weight is not None
        for name in ('in', ) if packed else ('q', 'k', 'v'):
            delattr(self, f'{name}_projection')
        self._qkv_same_embed_dim = packed
        super().leave()

    def __setstate__(self, state):
        super().__setstate__(state)
        # A projection that came before the weights was left incomplete.
        for child in self.children():
            if isinstance(child, QuantizedLayer):
                child.complete()

    def forward(self,
                query: Tensor,
                key: Tensor,
                value: Tensor,
                key_padding_mask: Tensor | None = None,
                need_weights: bool = True,
                attn_mask: Tensor | None = None,
                average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``; same shapes and masks."""
        whole = whole_call(
            self, (query, key, value, key_padding_mask, need_weights,
                   attn_mask, average_attn_weights, is_causal), {})
        if whole is not None:
            return whole
        q, k, v = self._project(query, key, value)
        batched = q.dim() == 3
        if not batched:
            q, k, v = (x.unsqueeze(1) for x in (q, k, v))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        if self.bias_k is not None:
            k, v = (torch.cat([x, bias.expand(-1, x.shape[1], -1)])
                    for x, bias in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 0, 0, 1)) for x in (k, v))
        length, batch, _ = q.shape
        # (N, heads, length, channels of a head)
        q, k, v = (x.reshape(x.shape[0], batch, self.num_heads, -1).permute(
            1, 2, 0, 3) for x in (q, k, v))
        out, weights = attend(
            q,
            k,
            v,
            mask=self._mask(q, k, attn_mask, key_padding_mask, is_causal),
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            products=getattr(self, 'products', None))
        out = self.out_proj(out.permute(2, 0, 1, 3).reshape(
            length, batch, -1))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            out = out.squeeze(1)
            weights = None if weights is None else weights.squeeze(0)
        elif self.batch_first:
            out = out.transpose(0, 1)
        return out, weights

    def _project(self, query: Tensor, key: Tensor,
                 value: Tensor) -> tuple[Tensor, ...]:
        if self.in_proj_weight is None:
            return (self.q_projection(query), self.k_projection(key),
                    self.v_projection(value))
        size = self.embed_dim
        if query is key and key is value:
            return self.in_projection(query).chunk(3, dim=-1)
        q = self.in_projection(query, slice(0, size))
        if key is value:
            k, v = self.in_projection(key, slice(size,
                                                 3 * size)).chunk(2, dim=-1)
            return q, k, v
        return (q, self.in_projection(key, slice(size, 2 * size)),
                self.in_projection(value, slice(2 * size, 3 * size)))

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None,
              padding: Tensor | None, is_causal: bool) -> Tensor | None:
        """What is added to the scores; broadcasts to (N, heads, L, S)."""
        if is_causal and attn_mask is None:
            raise RuntimeError('is_causal is a hint about attn_mask: give '
                               'the mask too')
        total = None
        if attn_mask is not None:
            total = _added(attn_mask, q.dtype)
            if total.dim() == 3:
                total = total.reshape(-1, self.num_heads, *total.shape[1:])
        if padding is not None:
            padding = _added(padding, q.dtype)[:, None, None]
            total = padding if total is None else total + padding
        if total is None:
            return None
        # Keys that bias_k and add_zero_attn appended are never masked.
        return F.pad(total, (0, k.shape[2] - total.shape[-1]))


@register_routed(nn.TransformerEncoder)
class RoutedTransformerEncoder(RoutedModule, nn.TransformerEncoder):
    """``nn.TransformerEncoder`` that never makes nested tensors.

    With them padding is left out, which only torch's fused layers can.
    """

    @classmethod
    def enter(cls, module: nn.TransformerEncoder) -> None:
        module.float_use_nested_tensor = module.use_nested_tensor
        module.use_nested_tensor = False
        super().enter(module)

    def leave(self) -> None:
        self.use_nested_tensor = self.float_use_nested_tensor
        del self.float_use_nested_tensor
        super().leave()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return nn.TransformerEncoder.forward(self, *args, **kwargs)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add: -inf where a boolean one is True."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(
        mask.shape, dtype=dtype,
        device=mask.device).masked_fill(mask, -torch.inf)
