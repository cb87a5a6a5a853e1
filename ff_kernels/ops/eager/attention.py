"""Attention over time."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attend_over_time(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Formula of ``ops.attend_over_time``."""
    B = query.shape[0]
    query, key, value = (rearrange(t, "b t p (h d) -> (b p) h t d", h=heads) for t in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value)  # [B * P, heads, T, C / heads]
    return rearrange(out, "(b p) h t d -> b t p (h d)", b=B).contiguous()
