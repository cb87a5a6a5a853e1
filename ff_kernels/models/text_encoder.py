"""T5 encoder with gated SiLU (Flan-UL2 at any size) and the trained projection to the U-Nets' context."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configs import TextConfig
from .layers import Layers

# Release 1.0: the interpolation reads the null embedding and one zero token, whatever the prompt
# (RELEASES.md, "Two null tokens, whatever the prompt").
NULL_TOKENS_V10 = 2


class RMSNorm(nn.Module):
    """Root-mean-square norm without bias, computed in float32."""

    def __init__(self, layers: Layers, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = layers.parameter(channels)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        full = x.float()
        full = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x) * full.to(x.dtype)


class SelfAttention(nn.Module):
    """Attention without scaling; the first block holds the relative position table that all blocks use."""

    def __init__(self, layers: Layers, config: TextConfig, has_positions: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads, self.config = config.num_heads, config
        self.q = layers.linear(config.d_model, inner, bias=False)
        self.k = layers.linear(config.d_model, inner, bias=False)
        self.v = layers.linear(config.d_model, inner, bias=False)
        self.o = layers.linear(inner, config.d_model, bias=False)
        if has_positions:
            self.relative_attention_bias = layers.embedding(config.relative_attention_num_buckets, config.num_heads)

    def position_bias(self, length: int, like: Tensor) -> Tensor:
        """Return ``[1, heads, length, length]``, added to the scores of every block."""
        places = torch.arange(length, device=like.device)
        offsets = places[None, :] - places[:, None]  # key minus query
        buckets = relative_buckets(
            offsets, self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance
        )
        return self.relative_attention_bias(buckets).permute(2, 0, 1)[None].to(like.dtype)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Map ``[B, L, d_model]`` to the same shape; ``bias`` holds positions and mask."""
        query, key, value = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """``wo(silu(wi_0 x) * wi_1 x)``."""

    def __init__(self, layers: Layers, config: TextConfig) -> None:
        super().__init__()
        self.wi_0 = layers.linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = layers.linear(config.d_model, config.d_ff, bias=False)
        self.wo = layers.linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, L, d_model]`` to the same shape."""
        return self.wo(F.silu(self.wi_0(x)) * self.wi_1(x))


class _AttentionLayer(nn.Module):
    def __init__(self, layers: Layers, config: TextConfig, has_positions: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(layers, config, has_positions)
        self.layer_norm = RMSNorm(layers, config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class _FeedForwardLayer(nn.Module):
    def __init__(self, layers: Layers, config: TextConfig) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(layers, config)
        self.layer_norm = RMSNorm(layers, config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class _Block(nn.Module):
    def __init__(self, layers: Layers, config: TextConfig, has_positions: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_AttentionLayer(layers, config, has_positions), _FeedForwardLayer(layers, config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, bias))


class _Stack(nn.Module):
    def __init__(self, layers: Layers, config: TextConfig, embedding: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = embedding
        self.block = nn.ModuleList(_Block(layers, config, i == 0) for i in range(config.num_layers))
        self.final_layer_norm = RMSNorm(layers, config.d_model, config.layer_norm_epsilon)


class TextEncoder(nn.Module):
    """Encoder half of a T5 with gated SiLU; keys are those of Flan-UL2 (``shared``, ``encoder.block...``).

    Args:
        config: sizes.
        operations: namespace of weighted layers, ``torch.nn`` or a host's own.
        device: where the weights are made, "meta" included.
        dtype: dtype of the weights; float32 or bfloat16 (float16 can overflow at the size of Flan-UL2), or eight bits
            with layers that cast their weights, computed in bfloat16.
    """

    def __init__(
        self, config: TextConfig, *, operations: Any = nn, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        layers = Layers(operations, device, dtype)
        self.config = config
        self.shared = layers.embedding(config.vocab_size, config.d_model)
        self.encoder = _Stack(layers, config, self.shared)

    def step_blocks(self) -> list[nn.Module]:
        """Return the blocks in the order in which they run."""
        return list(self.encoder.block)

    def conditioner_modules(self) -> list[nn.Module]:
        """Return nothing: every layer runs in every call."""
        return []

    def outer_blocks(self) -> list[nn.Module]:
        """Return nothing: all blocks are alike."""
        return []

    def looked_up(self) -> list[nn.Module]:
        """Return the table of words: of its many rows a prompt reads a few."""
        return [self.shared]

    def layers_read_apart(self) -> list[nn.Module]:
        """Return the table of positions, which lies in the first block and serves all."""
        return [self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden state ``[B, L, d_model]``.

        Args:
            input_ids: ``[B, L]`` token numbers.
            attention_mask: ``[B, L]``, 1 where a token is real.

        Source: T5 1.1 as in google/flan-ul2; golden ``text``.
        """
        x = self.shared(input_ids)
        if x.element_size() == 1:
            # Weights may be stored in eight bits, but nothing is computed in them.
            x = x.to(torch.bfloat16)
        bias = self.encoder.block[0].layer[0].SelfAttention.position_bias(input_ids.shape[1], x)
        bias = bias.masked_fill(~attention_mask.bool()[:, None, None, :], torch.finfo(x.dtype).min)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)


class TextProjection(nn.Sequential):
    """Linear without bias and LayerNorm from the encoder's width to the U-Nets' context width."""

    def __init__(
        self, inputs: int, outputs: int, *, operations: Any = nn, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        layers = Layers(operations, device, dtype)
        super().__init__(layers.linear(inputs, outputs, bias=False), layers.layer_norm(outputs))


def relative_buckets(offsets: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Map key-minus-query offsets to rows of the position table: half for each direction, exact, then in logs.

    Args:
        offsets: integers of any shape.
        buckets: rows of the table, even.
        max_distance: offsets from here on share the last row of their direction.

    Returns:
        Integers 0 .. buckets - 1 of the same shape.
    """
    half = buckets // 2
    exact = half // 2
    distance = offsets.abs()
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + far.to(torch.long)).clamp(max=half - 1)
    return torch.where(offsets > 0, half, 0) + torch.where(distance < exact, distance, far)


def project_context(hidden: Tensor, attention_mask: Tensor, projection: nn.Module) -> tuple[Tensor, Tensor]:
    """Project the encoder's output and cut it as the releases do.

    Args:
        hidden: ``[B, L, d_model]``.
        attention_mask: ``[B, L]``, 1 where a token is real.
        projection: ``TextProjection`` of the checkpoint.

    Returns:
        ``context [B, L', D]``, zero where masked, and ``context_mask [B, L']`` with L' = longest prompt + 1, at
        most L. The zero token after the prompt counts in the pooling mean (RELEASES.md, "One
        zero token counts in the mean"; golden ``text``).
    """
    context = projection(hidden) * attention_mask[..., None].to(hidden.dtype)
    length = int(attention_mask.sum(-1).max()) + 1
    return context[:, :length], attention_mask[:, :length]


def null_context(null_embedding: Tensor, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Return the unconditional context: the learned vector in token 0, zeros behind it.

    Args:
        null_embedding: ``[D]`` or ``[1, D]``.
        rows: R.
        length: tokens of the conditional context it stands beside (its mean, and so the result, depends on it).

    Returns:
        ``context [R, length, D]`` and ``context_mask [R, length]``.
    """
    null_embedding = null_embedding.reshape(-1)
    context = null_embedding.new_zeros(rows, length, null_embedding.shape[0])
    context[:, 0] = null_embedding
    mask = torch.zeros(rows, length, dtype=torch.long, device=context.device)
    mask[:, 0] = 1
    return context, mask
