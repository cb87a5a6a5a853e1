"""Attention: torch's own kernel, in the precision that it is fast in."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .norm import compute_dtype, is_trained_on_cpu


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``softmax(q k^T / sqrt(d)) v`` of ``[..., P, d]`` and ``[..., L, d]``; a mask fits ``[..., P, L]``."""
    dtype = query.dtype
    if is_trained_on_cpu(query):
        # Torch's gradient takes four times as long here in 16 bit (EXACTNESS.md, "Gradients of attention").
        query, key, value = (t.to(compute_dtype(dtype)) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).to(dtype)


def attend_over_time(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Formula of ``ops.attend_over_time``."""
    B = query.shape[0]
    query, key, value = (rearrange(t, "b t p (h d) -> (b p) h t d", h=heads) for t in (query, key, value))
    out = softmax_attention(query, key, value)  # [B * P, heads, T, C / heads]
    return rearrange(out, "(b p) h t d -> b t p (h d)", b=B).contiguous()
