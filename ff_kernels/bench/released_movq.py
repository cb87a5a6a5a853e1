"""MoVQ decoding of release 1.0 in the release's own formulation, for comparison: same weights, same operations.

Modulation maps are made at full resolution from the enlarged latent, norm, gain, bias and SiLU are passes of their
own, the decoder's attention is materialised, and a chunk of about five frames is decoded at once.

Source: release 1.0; golden ``v10_movq``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.movq import MoVQ
from .precision import PLAIN, Precision

_EPS = 1e-6


def decode_frames(movq: MoVQ, latents: Tensor, precision: Precision = PLAIN) -> Tensor:
    """Decode a clip chunk by chunk: ``[T, 4, h, w]`` to ``[T, 3, 8h, 8w]`` in 0..1."""
    chunks = latents.chunk(max(1, len(latents) // 4))
    video = torch.cat([decode_chunk(movq, chunk, precision) for chunk in chunks])
    return ((video + 1.0) / 2.0).clip(0.0, 1.0)


def decode_chunk(movq: MoVQ, latents: Tensor, precision: Precision = PLAIN) -> Tensor:
    """Decode ``[N, 4, h, w]`` to pixels ``[N, 3, 8h, 8w]``, about -1..1."""
    decoder, groups = movq.decoder, movq.config.groups
    x = precision.conv(decoder.conv_in, precision.conv(movq.post_quant_conv, latents))
    x = _residual(decoder.mid.block_1, x, latents, groups, precision)
    x = _attention(decoder.mid.attn_1, x, latents, groups, precision)
    x = _residual(decoder.mid.block_2, x, latents, groups, precision)
    for part in reversed(decoder.up):
        for i, block in enumerate(part.block):
            x = _residual(block, x, latents, groups, precision)
            if len(part.attn):
                x = _attention(part.attn[i], x, latents, groups, precision)
        if hasattr(part, "upsample"):
            x = precision.conv(part.upsample.conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return precision.conv(decoder.conv_out, _silu(_norm(decoder.norm_out, x, latents, groups, precision)))


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _norm(norm: nn.Module, x: Tensor, latents: Tensor, groups: int, precision: Precision) -> Tensor:
    """Normalise ``[N, C, H, W]`` and apply two maps of the same size made from the enlarged latent."""
    size = x.shape[-2:]
    x = precision.group_norm(x, groups, norm.norm_layer, _EPS)
    enlarged = F.interpolate(latents, size=size, mode="nearest")
    return x * precision.conv(norm.conv_y, enlarged) + precision.conv(norm.conv_b, enlarged)


def _residual(block: nn.Module, x: Tensor, latents: Tensor, groups: int, precision: Precision) -> Tensor:
    h = precision.conv(block.conv1, _silu(_norm(block.norm1, x, latents, groups, precision)))
    h = precision.conv(block.conv2, _silu(_norm(block.norm2, h, latents, groups, precision)))
    return (precision.conv(block.nin_shortcut, x) if hasattr(block, "nin_shortcut") else x) + h


def _attention(block: nn.Module, x: Tensor, latents: Tensor, groups: int, precision: Precision) -> Tensor:
    """Attend between the positions of a frame with one head and ``[N, P, P]`` weights in memory."""
    h = _norm(block.norm, x, latents, groups, precision)
    query, key, value = (precision.conv(layer, h).flatten(2) for layer in (block.q, block.k, block.v))  # [N, C, P]
    scores = torch.bmm(query.transpose(1, 2), key) * query.shape[1] ** -0.5
    weights = precision.to_narrow(precision.softmax(scores))
    out = torch.bmm(value, weights.transpose(1, 2)).unflatten(2, x.shape[-2:])
    return x + precision.conv(block.proj_out, out)
