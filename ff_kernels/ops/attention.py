"""Attention over tokens and over time."""

import torch
from torch import Tensor

from .eager import attention as formulas
from .registry import Cost, Operation, bytes_of


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention ``softmax(q k^T / sqrt(d)) v`` with heads folded into the channels.

    ``scaled_dot_product_attention`` is already one kernel on every device, so this has no backends of its own.

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
    out = formulas.softmax_attention(query, key, value, mask)  # [B, heads, P, C / heads]
    return out.transpose(1, 2).reshape(B, P, C)


def _cost(query: Tensor, key: Tensor, value: Tensor, heads: int, *, out: Tensor) -> Cost:
    B, T, P, C = query.shape
    return Cost(1, 4 * B * P * T * T * C, bytes_of(query, key, value, out))


_attend_over_time = Operation(
    "attend_over_time",
    "(Tensor query, Tensor key, Tensor value, int heads) -> Tensor",
    lambda query, key, value, heads: torch.empty_like(query, memory_format=torch.contiguous_format),
    _cost,
    formulas.attend_over_time,
)


def attend_over_time(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention along time at every latent position (paper, "Temporal Attn1D").

    Args:
        query: ``[B, T, P, C]``; key and value have the same shape and may be slices of one tensor.
        key: see ``query``.
        value: see ``query``.
        heads: number of heads, a divisor of C.

    Returns:
        ``[B, T, P, C]``.
    """
    return _attend_over_time(query, key, value, heads)
