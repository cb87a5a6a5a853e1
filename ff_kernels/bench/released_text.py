"""The text encoder in the order of operations that the releases ran, for comparison: same weights.

Both releases encode with transformers' ``T5EncoderModel``. This is that model from its description (T5 1.1, gated
SiLU): norms and softmax in float32, scores and weights of the attention in memory, positions and mask added to the
scores of every block. Products are in the dtype of the weights.

Source: T5 1.1 as in google/flan-ul2; golden ``text``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.text_encoder import TextEncoder, relative_buckets


def encode_text(
    encoder: TextEncoder, ids: Tensor, mask: Tensor, bring: Callable[[nn.Module], nn.Module] = lambda block: block
) -> Tensor:
    """Return the last hidden state ``[B, L, d_model]``.

    Args:
        encoder: the text encoder.
        ids: ``[B, L]`` token numbers.
        mask: ``[B, L]``, non-zero where a token is real.
        bring: from a block, or the last norm, to one whose weights are where ``ids`` are; the table of words is read
            where it is.
    """
    table = encoder.shared.weight
    x = F.embedding(ids.to(table.device), table).to(ids.device)
    bias: Tensor | None = None
    for block in encoder.encoder.block:
        attention, feed_forward = bring(block).layer
        if bias is None:
            bias = _positions(attention.SelfAttention, x) + _hidden(mask, x.dtype)
        x = x + _attend(attention.SelfAttention, _norm(attention.layer_norm, x), bias)
        gated, h = feed_forward.DenseReluDense, _norm(feed_forward.layer_norm, x)
        x = x + _linear(gated.wo, F.silu(_linear(gated.wi_0, h)) * _linear(gated.wi_1, h))
    return _norm(bring(encoder.encoder.final_layer_norm), x)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight)


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return norm.weight * (x * torch.rsqrt(variance + norm.eps)).to(x.dtype)


def _positions(attention: nn.Module, x: Tensor) -> Tensor:
    """Return ``[1, heads, L, L]`` that is added to the scores of every block."""
    places = torch.arange(x.shape[1], device=x.device)
    config = attention.config
    buckets = relative_buckets(
        places[None, :] - places[:, None], config.relative_attention_num_buckets, config.relative_attention_max_distance
    )
    return F.embedding(buckets, attention.relative_attention_bias.weight).permute(2, 0, 1)[None]


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``[B, 1, 1, L]``: the lowest number where a token is not real, else 0."""
    return (1 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


def _attend(attention: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    """Attend within ``[B, L, D]`` without scaling, with scores and weights ``[B, heads, L, L]`` in memory."""
    layers = (attention.q, attention.k, attention.v)
    query, key, value = (_linear(layer, x).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for layer in layers)
    scores = torch.matmul(query, key.transpose(2, 3)) + bias
    weights = scores.float().softmax(dim=-1).to(scores.dtype)
    return _linear(attention.o, torch.matmul(weights, value).transpose(1, 2).flatten(2))
