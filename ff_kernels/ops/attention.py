"""Attention over tokens and over time; both are thin views around ``scaled_dot_product_attention``."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention ``softmax(q k^T / sqrt(d)) v`` with heads folded into the channels.

    Args:
        query: ``[B, P, C]``.
        key: ``[B, L, C]``.
        value: ``[B, L, C]``.
        heads: number of heads, a divisor of C.
        mask: optional ``[B, L]`` booleans, True where a key may be attended to.

    Returns:
        ``[B, P, C]``.
    """
    B, P, C = query.shape
    query, key, value = (t.unflatten(-1, (heads, C // heads)).transpose(1, 2) for t in (query, key, value))
    mask = None if mask is None else mask[:, None, None, :]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [B, heads, P, C / heads]
    return out.transpose(1, 2).reshape(B, P, C)


def attend_over_time(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention along time at every latent position (paper, "Temporal Attn1D").

    Args:
        query: ``[B, T, P, C]``; key and value have the same shape.
        key: see ``query``.
        value: see ``query``.
        heads: number of heads, a divisor of C.

    Returns:
        ``[B, T, P, C]``.
    """
    B = query.shape[0]
    query, key, value = (rearrange(t, "b t p (h d) -> (b p) h t d", h=heads) for t in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value)  # [B * P, heads, T, C / heads]
    return rearrange(out, "(b p) h t d -> b t p (h d)", b=B)
