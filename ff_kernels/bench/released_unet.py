"""The U-Nets of both releases in the releases' own formulation, for comparison: same weights, same order of operations.

The functions walk the engine's module trees by state-dict name and keep what makes the release slow: contiguous
NCHW activations, modulations and text projections made anew at every step, the text repeated for every frame,
materialised softmax, copies around every operation over time. Nothing here is used to make a video.

Source: releases 1.0 and 1.1; goldens ``v1*_keyframe_unet`` and ``v1*_interpolation_unet``. N = B*T samples, B branches.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.conditions import Rows, sinusoid
from ..models.configs import UNetConfig
from ..models.interpolation_unet import InterpolationUNet
from ..models.keyframe_unet import KeyframeUNet
from ..models.unet import UNet
from .precision import PLAIN, Precision


@dataclass(frozen=True)
class Texts:
    """What the branches read.

    Attributes:
        context: ``[T, L, D]`` the prompt, repeated for every frame or gap.
        mask: ``[T, L]``, non-zero where a token is valid.
        null_embedding: ``[D]`` the text of the unconditional branches.
    """

    context: Tensor
    mask: Tensor
    null_embedding: Tensor

    def stacked(self, branches: int = 2) -> tuple[Tensor, Tensor]:
        """Build the null branch and put it behind the prompt: ``[B*T, L, D]`` and ``[B*T, L]`` booleans."""
        null, null_mask = torch.zeros_like(self.context), torch.zeros_like(self.mask)
        null[:, 0] = self.null_embedding
        null_mask[:, 0] = 1
        nulls = branches - 1
        return torch.cat([self.context, *[null] * nulls]), torch.cat([self.mask, *[null_mask] * nulls]).bool()


@dataclass(frozen=True)
class _Told:
    """What the blocks of one forward are told.

    Attributes:
        config: sizes.
        precision: dtypes of the operations.
        time: ``[N, E]``.
        context: ``[N, L, D]``.
        mask: ``[N, L]`` booleans.
        frames: samples of one clip.
        position: ``[N, E]``, or None in the interpolation.
        merge: ``[N]`` factors on every merge over time, or None; release 1.1 interpolation.
    """

    config: UNetConfig
    precision: Precision
    time: Tensor
    context: Tensor
    mask: Tensor
    frames: int
    position: Tensor | None = None
    merge: Tensor | None = None

    def vector(self, rows: Rows) -> Tensor:
        """Return what a norm that is told ``rows`` makes its modulation from."""
        if rows == "both":
            # Release 1.1 adds the two anew for every block.
            return self.time + self.position
        return self.time if rows == "time" else self.position


def keyframe_forward(
    unet: KeyframeUNet, x: Tensor, time: Tensor, context: Tensor, mask: Tensor, positions: Tensor, clip_length: int,
    precision: Precision = PLAIN, noise_level: Tensor | None = None, motion_score: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Predict the noise of stacked branches.

    Args:
        unet: keyframe U-Net.
        x: ``[N, 4, h, w]``; release 1.1 ``[N, 9, h, w]``.
        time: ``[N]`` timesteps.
        context: ``[N, L, D]``.
        mask: ``[N, L]`` booleans, True where a token is valid.
        positions: ``[N]`` frame positions.
        clip_length: samples of one clip.
        precision: dtypes of the operations.
        noise_level: ``[N]``, release 1.1: of the first frame.
        motion_score: ``[N]``, release 1.1.

    Returns:
        ``[N, 4, h, w]``.
    """
    x, vector = _begin(unet, x, time, context, mask, precision)
    position = _embed(unet, unet.to_temporal_embed, positions, precision)
    if noise_level is not None:
        position = position + _embed(unet, unet.temporal_noise_aug_time_encoding, noise_level, precision)
    if motion_score is not None:
        position = position + _embed(unet, unet.temporal_motion_score_encoding, motion_score, precision)
    return _levels(unet, x, _Told(unet.config, precision, vector, context, mask, clip_length, position))


def interpolation_forward(
    unet: InterpolationUNet, x: Tensor, time: Tensor, context: Tensor, mask: Tensor, skip_frames: Tensor,
    num_gaps: int, precision: Precision = PLAIN, noise_level: Tensor | None = None, merge: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Predict v of stacked branches: ``x`` ``[N, 20, h, w]`` to ``[N, 12, h, w]``.

    ``skip_frames`` are ``[N]`` integers 0..19, ``num_gaps`` the samples of one clip, ``noise_level`` ``[N]`` that of
    the keyframes (default 0), ``merge`` ``[N]`` factors on the merges over time (release 1.1); the rest as in
    ``keyframe_forward``.
    """
    # Release 1.0 pools the text first and dims it with the time; 1.1 adds it last.
    pools_first = unet.config.family == "1.0"
    vector = _embed(unet, unet.to_time_embed, time, precision)
    vector = _pool(unet, vector, context, mask, precision) if pools_first else vector
    clean = torch.zeros(context.shape[0], device=context.device) if noise_level is None else noise_level
    noisy = _embed(unet, unet.perturbation_to_time_embed, clean, precision)
    vector = _blend(vector, noisy, unet.time_embed_merge)
    vector = unet.skip_merge * F.embedding(skip_frames, unet.skip_embeddings.weight) + vector
    vector = vector if pools_first else _pool(unet, vector, context, mask, precision)
    x = precision.conv(unet.in_layer, x)
    return _levels(unet, x, _Told(unet.config, precision, vector, context, mask, num_gaps, merge=merge))


@dataclass(frozen=True)
class Shown:
    """What release 1.1 shows the keyframe network beside the noise.

    Attributes:
        first_frame: ``[T, 5, h, w]``: latents of the first frame and their mask, zero after frame 0.
        noise_level: diffusion steps of noise on it.
        motion_score: 1 (still) .. 100.
    """

    first_frame: Tensor
    noise_level: int
    motion_score: int


def keyframe_step(
    unet: KeyframeUNet, x: Tensor, timestep: Tensor, texts: Texts, positions: Tensor, precision: Precision = PLAIN,
    shown: Shown | None = None,
) -> Tensor:  # fmt: skip
    """Stack the guidance branches of one clip and predict: ``x`` ``[T, 4, h, w]`` to ``[B*T, 4, h, w]``.

    ``timestep`` and ``positions`` are ``[T]``. Release 1.0 has two branches; 1.1, which is shown a first frame, has
    three: text and frame, frame alone, neither.
    """
    branches = 2 if shown is None else 3
    context, mask = texts.stacked(branches)
    stacked, more = x.repeat(branches, 1, 1, 1), {}
    if shown is not None:
        frame = shown.first_frame
        stacked = torch.cat([stacked, torch.cat([frame, frame, torch.zeros_like(frame)])], dim=1)
        told = {"noise_level": shown.noise_level, "motion_score": shown.motion_score}
        more = {name: torch.full((len(stacked),), value, device=x.device) for name, value in told.items()}
    told = (timestep.repeat(branches), context, mask, positions.repeat(branches), len(x), precision)
    return keyframe_forward(unet, stacked, *told, **more)


def interpolation_step(
    unet: InterpolationUNet, x: Tensor, ends: tuple[Tensor, Tensor], timestep: Tensor, texts: Texts,
    skip_frames: Tensor, precision: Precision = PLAIN,
) -> Tensor:  # fmt: skip
    """Stack both guidance branches of one clip and predict: ``x`` ``[G, 12, h, w]`` to ``[2G, 12, h, w]``.

    ``ends`` are the left and right keyframes ``[G, 4, h, w]``; ``timestep`` and ``skip_frames`` are ``[G]``. Release
    1.1 switches every merge over time off in the second branch.
    """
    nothing = torch.zeros_like(ends[0])
    left, right = (torch.cat([end, nothing]) for end in ends)
    both = torch.cat([left, x.repeat(2, 1, 1, 1), right], dim=1)
    context, mask = texts.stacked()
    skips, ones = torch.cat([skip_frames, skip_frames]), torch.ones(len(x), device=x.device)
    merge = None if unet.config.family == "1.0" else torch.cat([ones, torch.zeros_like(ones)])
    told = (timestep.repeat(2), context, mask, skips, len(x), precision)
    return interpolation_forward(unet, both, *told, merge=merge)


def _begin(
    unet: UNet, x: Tensor, time: Tensor, context: Tensor, mask: Tensor, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Return the first maps ``[N, C, h, w]`` and the vector ``[N, E]`` of time and pooled text."""
    vector = _pool(unet, _embed(unet, unet.to_time_embed, time, precision), context, mask, precision)
    return precision.conv(unet.in_layer, x), vector


def _embed(unet: UNet, embedding: nn.Module, values: Tensor, precision: Precision) -> Tensor:
    x = sinusoid(values, unet.config.init_channels)
    return precision.linear(embedding[3], F.silu(precision.linear(embedding[1], x)))


def _pool(unet: UNet, time: Tensor, context: Tensor, mask: Tensor, precision: Precision) -> Tensor:
    attention = unet.feature_pooling.attention
    mean = context.mean(dim=1, keepdim=True)
    return time + _attend(attention, mean, context, unet.config.head_dim, precision, mask).squeeze(1)


def _levels(unet: UNet, x: Tensor, told: _Told) -> Tensor:
    skips = []
    for level in unet.down_samples:
        x = _down(level, x, told)
        skips.append(x)
    skips.pop()
    for i, level in enumerate(unet.up_samples):
        x = _up(level, torch.cat([x, skips.pop()], dim=1) if i else x, told)
    norm, _, conv = unet.out_layer
    x = F.silu(told.precision.group_norm(x, told.config.groups, norm))
    return told.precision.conv(conv, x)


def _down(level: nn.Module, x: Tensor, told: _Told) -> Tensor:
    x = _attention(level.self_attention_block, x, told)
    x = _over_frames(level.temporal_attention_block, x, told)
    for first, text, second, first_time, second_time in level.resnet_attn_blocks:
        x = _temporal_residual(first_time, _residual(first, x, told), told)
        x = _attention(text, x, told, is_cross=True)
        x = _temporal_residual(second_time, _residual(second, x, told), told)
    return x


def _up(level: nn.Module, x: Tensor, told: _Told) -> Tensor:
    for first, text, second, first_time, second_time in level.resnet_attn_blocks:
        x = _residual(first, _temporal_residual(first_time, x, told), told)
        x = _attention(text, x, told, is_cross=True)
        x = _residual(second, _temporal_residual(second_time, x, told), told)
    if told.position is None:
        return _over_frames(level.temporal_attention_block, _attention(level.self_attention_block, x, told), told)
    x = _over_frames(level.temporal_attention_block, x, told)
    return _attention(level.self_attention_block, x, told)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _norm(norm: nn.Module, x: Tensor, told: _Told) -> Tensor:
    """Make the modulation from what the norm is told and apply it in two passes over ``[N, C, H, W]``."""
    rows = told.precision.linear(norm.context_mlp[1], F.silu(told.vector(norm.rows)))
    scale, shift = rows[:, :, None, None].chunk(2, dim=1)
    return told.precision.group_norm(x, told.config.groups) * (scale + 1.0) + shift


def _conv_block(block: nn.Module, x: Tensor, told: _Told) -> Tensor:
    x = F.silu(_norm(block.group_norm, x, told))
    if _has_weights(block.up_sample):
        x = told.precision.conv_transpose(block.up_sample, x)
    x = told.precision.conv(block.projection, x)
    if hasattr(block, "temporal_merge"):
        x = _blend(x, _over_time(block.temporal_projection, x, told), block.temporal_merge)
    elif hasattr(block, "temporal_projection_new"):
        mixed = block.temporal_projection_new
        x = _blend(x, _over_time(mixed.temporal_projection, x, told), _factored(mixed.temporal_merge, told))
    return told.precision.conv(block.down_sample, x) if _has_weights(block.down_sample) else x


def _blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return share * other + (1 - share) * x


def _factored(share: Tensor, told: _Told) -> Tensor:
    return share if told.merge is None else share * told.merge[:, None, None, None]


def _over_time(conv: nn.Module, x: Tensor, told: _Told) -> Tensor:
    """Turn ``[N, C, H, W]`` into ``[B, C, T, H, W]``, run a 3-D convolution, and copy back."""
    clips = x.unflatten(0, (-1, told.frames)).transpose(1, 2)
    return told.precision.conv(conv, clips).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


def _residual(block: nn.Module, x: Tensor, told: _Told) -> Tensor:
    out = x
    for part in block.resnet_blocks:
        out = _conv_block(part, out, told)
    if _has_weights(block.shortcut_up_sample):
        x = told.precision.conv_transpose(block.shortcut_up_sample, x)
    for shortcut in (block.shortcut_projection, block.shortcut_down_sample):
        if _has_weights(shortcut):
            x = told.precision.conv(shortcut, x)
    return x + out


def _temporal_residual(block: nn.Module, x: Tensor, told: _Told) -> Tensor:
    if not _has_weights(block):
        return x
    out = x
    for norm, _, conv in block.temporal_resnet_blocks:
        out = _over_time(conv, F.silu(_norm(norm, out, told)), told)
    return x + out


def _attention(block: nn.Module, x: Tensor, told: _Told, is_cross: bool = False) -> Tensor:
    if not _has_weights(block):
        return x
    tokens = _norm(block.in_norm, x, told).flatten(2).transpose(1, 2)  # [N, P, C]
    context, mask = (told.context, told.mask) if is_cross else (tokens, None)
    out = _attend(block.attention, tokens, context, told.config.head_dim, told.precision, mask)
    x = x + out.transpose(1, 2).unflatten(2, x.shape[-2:])
    return x + _feed_forward(block, block.out_norm, x, told)


def _over_frames(block: nn.Module, x: Tensor, told: _Told) -> Tensor:
    if not _has_weights(block):
        return x
    return (_merging_attention if hasattr(block, "temporal_merge1") else _temporal_attention)(block, x, told)


def _merging_attention(block: nn.Module, x: Tensor, told: _Told) -> Tensor:
    """Attend over the gaps of a clip at every position and blend, then blend a feed-forward; release 1.1."""
    clips = _norm(block.in_norm, x, told).unflatten(0, (-1, told.frames)).flatten(3)  # [B, T, C, P]
    tokens = clips.permute(0, 3, 1, 2).flatten(0, 1)  # [B * P, T, C]
    out = _attend(block.attention, tokens, tokens, told.config.head_dim, told.precision, None)
    out = out.unflatten(0, (-1, clips.shape[3])).permute(0, 2, 3, 1).reshape(x.shape)
    x = _blend(x, out, _factored(block.temporal_merge1, told))
    return _blend(x, _feed_forward(block, block.out_norm, x, told), _factored(block.temporal_merge2, told))


def _temporal_attention(block: nn.Module, x: Tensor, told: _Told) -> Tensor:
    in_norm, out_norm = (getattr(block, name) for name in block.norm_names)
    precision, head_dim, layers = told.precision, told.config.head_dim, block.temporal_attention
    out = _norm(in_norm, x, told)
    out = out.unflatten(0, (-1, told.frames)).flatten(3).transpose(2, 3)  # [B, T, P, C]
    query, key, value = (
        precision.linear(layer, out).unflatten(-1, (-1, head_dim)).permute(0, 2, 3, 1, 4)  # [B, P, heads, T, d]
        for layer in (layers.to_query, layers.to_key, layers.to_value)
    )
    scores = torch.einsum("bphid,bphjd->bphij", query, key) * head_dim**-0.5
    weights = precision.to_narrow(precision.softmax(scores))
    out = torch.einsum("bphij,bphjd->bphid", weights, value).permute(0, 3, 1, 2, 4).flatten(3)  # [B, T, P, C]
    out = precision.linear(layers.output_layer, out)
    x = x + out.transpose(2, 3).reshape(x.shape)
    return x + _feed_forward(block, out_norm, x, told)


def _feed_forward(block: nn.Module, norm: nn.Module, x: Tensor, told: _Told) -> Tensor:
    widen, _, narrow = block.feed_forward
    x = _norm(norm, x, told)
    return told.precision.conv(narrow, F.silu(told.precision.conv(widen, x)))


def _attend(
    layers: nn.Module, x: Tensor, context: Tensor, head_dim: int, precision: Precision, mask: Tensor | None
) -> Tensor:
    """Attend from ``[N, P, D]`` to ``[N, L, D']`` with scores and weights ``[N, heads, P, L]`` in memory."""
    sources = ((layers.to_query, x), (layers.to_key, context), (layers.to_value, context))
    query, key, value = (
        precision.linear(layer, source).unflatten(-1, (-1, head_dim)).transpose(1, 2)  # [N, heads, P or L, d]
        for layer, source in sources
    )
    scores = torch.einsum("nhid,nhjd->nhij", query, key) * head_dim**-0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.finfo(scores.dtype).max)
    weights = precision.to_narrow(precision.softmax(scores))
    out = torch.einsum("nhij,nhjd->nhid", weights, value).transpose(1, 2).flatten(2)
    return precision.linear(layers.output_layer, out)
