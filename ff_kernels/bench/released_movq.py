"""MoVQ decoding of both releases in their own formulation, for comparison: same weights, same operations.

Modulation maps are made at full resolution from the enlarged latent, norm, gain, bias and SiLU are passes of their
own, the decoder's attention is materialised, and a chunk of about five frames is decoded at once. The video decoder of
1.1 runs everything but what looks over time frame by frame and joins the frames again each time.

Source: releases 1.0 and 1.1; goldens ``v10_movq`` and ``v11_video_movq``.
"""

from collections.abc import Callable

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
    return _Decoding(movq, latents, precision).run()


class _Decoding:
    """One chunk on its way; ``[N, C, H, W]`` throughout."""

    def __init__(self, movq: MoVQ, latents: Tensor, precision: Precision) -> None:
        self.decoder, self.latents, self.precision = movq.decoder, latents, precision
        self.post_quant_conv, self.groups, self.is_video = (
            movq.post_quant_conv,
            movq.config.groups,
            movq.config.is_video,
        )
        # Release 1.1: attention takes the latent of the chunk's first frame for every frame.
        self.shown = latents[:1].expand_as(latents) if self.is_video else latents

    def run(self) -> Tensor:
        """Decode."""
        decoder, conv = self.decoder, self.precision.conv
        x = conv(decoder.conv_in, conv(self.post_quant_conv, self.latents))
        x = self._residual(decoder.mid.block_1, x)
        x = self._attention(decoder.mid.attn_1, x)
        x = self._over_time(getattr(decoder.mid, "temporal_attn_1", None), x)
        x = self._residual(decoder.mid.block_2, x)
        for part in reversed(decoder.up):
            for i, block in enumerate(part.block):
                x = self._residual(block, x)
                if len(part.attn):
                    x = self._attention(part.attn[i], x)
                if len(part.temporal_attn):
                    x = self._over_time(part.temporal_attn[i], x)
            if hasattr(part, "upsample"):
                x = self._each(lambda x, part=part: conv(part.upsample.conv, _doubled(x)), x)
        return conv(decoder.conv_out, _silu(self._each(self._norm(decoder.norm_out), x, self.latents)))

    def _each(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Run on all frames at once or, as release 1.1 does, on one after the other."""
        if not self.is_video:
            return function(*tensors)
        return torch.cat([function(*parts) for parts in zip(*(tensor.split(1) for tensor in tensors), strict=True)])

    def _norm(self, norm: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a norm followed by two maps of the same size made from the enlarged latent."""

        def run(x: Tensor, latents: Tensor) -> Tensor:
            size, precision = x.shape[-2:], self.precision
            x = precision.group_norm(x, self.groups, norm.norm_layer, _EPS)
            enlarged = F.interpolate(latents, size=size, mode="nearest")
            return x * precision.conv(norm.conv_y, enlarged) + precision.conv(norm.conv_b, enlarged)

        return run

    def _half(self, norm: nn.Module, conv: nn.Module, x: Tensor) -> Tensor:
        run = self._norm(norm)
        return self._each(lambda x, latents: self.precision.conv(conv, _silu(run(x, latents))), x, self.latents)

    def _residual(self, block: nn.Module, x: Tensor) -> Tensor:
        h = self._half(block.norm1, block.conv1, x)
        if block.is_temporal:
            h = self._mixed(block.temporal_projection1, block.temporal_merge1, h)
        h = self._half(block.norm2, block.conv2, h)
        if block.is_temporal:
            h = self._mixed(block.temporal_projection2, block.temporal_merge2, h)
        if block.has_shortcut:
            x = self._each(lambda x: self.precision.conv(block.nin_shortcut, x), x)
        return x + h

    def _mixed(self, conv: nn.Module, merge: Tensor, x: Tensor) -> Tensor:
        """Blend the frames of the chunk with a 3x3x3 convolution of them."""
        out = self.precision.conv(conv, x.transpose(0, 1)[None])[0].transpose(0, 1)
        return (1 - merge) * x + merge * out

    def _attention(self, block: nn.Module, x: Tensor) -> Tensor:
        """Attend between the positions of a frame with one head and ``[N, P, P]`` weights in memory."""
        norm = self._norm(block.norm)

        def run(x: Tensor, latents: Tensor) -> Tensor:
            h = norm(x, latents)
            tokens = [self.precision.conv(layer, h).flatten(2) for layer in (block.q, block.k, block.v)]  # [N, C, P]
            return self.precision.conv(block.proj_out, self._attend(*tokens).unflatten(2, x.shape[-2:]))

        return x + self._each(run, x, self.shown)

    def _over_time(self, block: nn.Module | None, x: Tensor) -> Tensor:
        """Attend between the frames at each position; the norm is not modulated."""
        if block is None:
            return x
        norm, conv, size = block.norm.norm_layer, self.precision.conv, x.shape[-2:]
        h = self._each(lambda x: self.precision.group_norm(x, self.groups, norm, _EPS), x)
        tokens = [conv(layer, h).flatten(2).permute(2, 1, 0) for layer in (block.q, block.k, block.v)]  # [P, C, T]
        out = self._attend(*tokens).permute(2, 1, 0).unflatten(2, size)
        return x + conv(block.proj_out, out)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend between the columns of ``[N, C, L]``."""
        scores = torch.bmm(query.transpose(1, 2), key) * query.shape[1] ** -0.5
        weights = self.precision.to_narrow(self.precision.softmax(scores))
        return torch.bmm(value, weights.transpose(1, 2))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)
