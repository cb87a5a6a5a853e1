"""Attention over tokens and over time; both are thin views around ``scaled_dot_product_attention``."""

import torch.nn.functional as F
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
    B, T, P, C = query.shape
    # [B, T, P, heads, d] -> [B * P, heads, T, d]
    query, key, value = (
        t.unflatten(-1, (heads, C // heads)).permute(0, 2, 3, 1, 4).flatten(0, 1) for t in (query, key, value)
    )
    out = F.scaled_dot_product_attention(query, key, value)
    return out.unflatten(0, (B, P)).permute(0, 3, 1, 2, 4).reshape(B, T, P, C)
