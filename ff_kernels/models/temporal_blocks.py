"""Blocks that mix the samples of a clip over time: the four variants of the paper's figure 3, and the interpolation."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from ..ops import attend, attend_over_time
from .blocks import (
    Attention,
    AttentionBlock,
    ConditionalGroupNorm,
    ConvBlock,
    add_feed_forward,
    feed_forward,
    to_maps,
    to_tokens,
)
from .conditions import Rows, Step
from .configs import VOLUME_VARIANT, WINDOWED_VARIANT, UNetConfig
from .layers import Layers, add, is_pointwise, project, project_maps


def is_temporal(name: str) -> bool:
    """Whether a parameter of a U-Net belongs to the parts over time, the position embedding included."""
    return "temporal" in name


def as_clips(x: Tensor, frames: int) -> Tensor:
    """View ``[B * T, C, H, W]`` as ``[B, C, T, H * W]``; no copy for channels-last activations."""
    return to_tokens(x).unflatten(0, (-1, frames)).permute(0, 3, 1, 2)


def from_clips(clips: Tensor, like: Tensor) -> Tensor:
    """View ``[B, C, T, H * W]`` as ``[B * T, C, H, W]`` with the sides of ``like``."""
    return to_maps(clips.permute(0, 2, 3, 1).flatten(0, 1), like)


def run_in_time(conv: nn.Module, x: Tensor, frames: int, residual: Tensor | None = None) -> Tensor:
    """Run a convolution along time on ``[N, C, H, W]``, N clips of ``frames`` samples, and add ``residual``."""
    if is_pointwise(conv):
        return project_maps(conv, x, residual=residual)
    if residual is not None and getattr(conv, "adds_residual", False):
        return from_clips(conv(as_clips(x, frames), as_clips(residual, frames)), x)
    out = from_clips(conv(as_clips(x, frames)), x)
    return add(out, residual)


def run_in_volume(conv: nn.Module, x: Tensor, frames: int, residual: Tensor | None = None) -> Tensor:
    """Run a 3x3x3 convolution on ``[N, C, H, W]``, N clips of ``frames`` samples, and add ``residual``."""
    out = conv(x.unflatten(0, (-1, frames)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    return add(out, residual)


# The paper reduces the channels so that Conv3dAttn1dBlocks has about the parameters of the released variant, and does
# not say by how much. At the released sizes this is the nearest (tests/models/test_variants.py).
VOLUME_REDUCTION = 4.25


def volume_width(channels: int, groups: int) -> int:
    """Return the channels inside a block of 3x3x3 convolutions: a multiple of ``groups``, about a quarter of them."""
    return max(1, round(channels / VOLUME_REDUCTION / groups)) * groups


class TemporalResNetBlock(nn.Module):
    """Residual bottleneck of four convolutions along time (kernels 1, 3, 3, 1), each after norm and SiLU.

    In Conv3dAttn1dBlocks the inner two are 3x3x3 and fewer channels wide.
    """

    def __init__(self, layers: Layers, config: UNetConfig, channels: int, rows: Rows) -> None:
        super().__init__()
        is_volume = config.temporal_variant == VOLUME_VARIANT
        hidden = volume_width(channels, config.groups) if is_volume else channels // config.compression_ratio
        widths = ((channels, hidden), (hidden, hidden), (hidden, hidden), (hidden, channels))
        self.temporal_resnet_blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    ConditionalGroupNorm(layers, config, inputs, rows),
                    nn.SiLU(),
                    layers.conv3d(inputs, outputs)
                    if is_volume and kernel > 1
                    else layers.temporal_conv(inputs, outputs, kernel),
                ]
            )
            for (inputs, outputs), kernel in zip(widths, (1, 3, 3, 1), strict=True)
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        if not step.conditions.is_temporal:
            return x
        out, last = x, len(self.temporal_resnet_blocks) - 1
        for i, (norm, _, conv) in enumerate(self.temporal_resnet_blocks):
            out = norm(out, step, activate=True)
            run = run_in_volume if conv.kernel_size[-1] > 1 else run_in_time
            out = run(conv, out, step.conditions.clip_length, residual=x if i == last else None)
        return out


class TemporalSelfAttention(Attention):
    """Attention along time at every position."""

    def __init__(self, layers: Layers, config: UNetConfig, channels: int) -> None:
        super().__init__(layers, config, channels, channels, channels)

    def forward(self, x: Tensor, frames: int, residual: Tensor | None = None) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape, plus ``residual``."""
        clips = to_tokens(x).unflatten(0, (-1, frames))  # [B, T, P, C]
        out = attend_over_time(*self.project_all(clips), self.heads)
        after = None if residual is None else to_tokens(residual)
        return to_maps(project(self.output_layer, out.flatten(0, 1), residual=after), x)


class WindowedSelfAttention(TemporalSelfAttention):
    """Attention inside windows of 2 x 2 positions and all T frames, grouped as MaxViT's block attention.

    The weights are those of ``TemporalSelfAttention``; only the sequences are four times as long.
    """

    def forward(self, x: Tensor, frames: int, residual: Tensor | None = None) -> Tensor:
        """Map ``[N, C, H, W]``, H and W even, to the same shape, plus ``residual``."""
        tokens = to_windows(x, frames)
        out = attend(*self.project_all(tokens), self.heads)
        out = from_windows(project(self.output_layer, out), x, frames)
        return out if residual is None else residual + out


def to_windows(x: Tensor, frames: int) -> Tensor:
    """Gather ``[B * T, C, H, W]`` as ``[B * H / 2 * W / 2, T * 4, C]``: four neighbouring positions of every frame."""
    return rearrange(x, "(b t) c (h p) (w q) -> (b h w) (t p q) c", t=frames, p=2, q=2)


def from_windows(tokens: Tensor, like: Tensor, frames: int) -> Tensor:
    """Undo ``to_windows``: ``[N, C, H, W]`` with the sides of ``like``."""
    H, W = like.shape[-2:]
    return rearrange(tokens, "(b h w) (t p q) c -> (b t) c (h p) (w q)", t=frames, p=2, q=2, h=H // 2, w=W // 2)


def temporal_self_attention(layers: Layers, config: UNetConfig, channels: int) -> TemporalSelfAttention:
    """Return the attention over time of the configured variant."""
    is_windowed = config.temporal_variant == WINDOWED_VARIANT
    return (WindowedSelfAttention if is_windowed else TemporalSelfAttention)(layers, config, channels)


def first_rows(config: UNetConfig) -> Rows:
    """Return what the norm before an attention over time is told."""
    return "position" if config.family == "1.0" else "both"


class TemporalAttentionBlock(nn.Module):
    """Temporal attention and its own feed-forward, each residual; norms are named as each release names them."""

    def __init__(self, layers: Layers, config: UNetConfig, channels: int) -> None:
        super().__init__()
        is_v10 = config.family == "1.0"
        # Release 1.0: the first norm is told the frame position only, the second the time only; release 1.1
        # tells both norms the sum of the two (golden v10_keyframe_unet, v11_keyframe_unet).
        first = first_rows(config)
        second: Rows = "time" if is_v10 else "both"
        names = ("in_norm", "out_norm") if is_v10 else ("temporal_norm", "ff_norm")
        self.norm_names = names
        self.add_module(names[0], ConditionalGroupNorm(layers, config, channels, first))
        self.temporal_attention = temporal_self_attention(layers, config, channels)
        self.add_module(names[1], ConditionalGroupNorm(layers, config, channels, second))
        self.feed_forward = feed_forward(layers, config, channels)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        if not step.conditions.is_temporal:
            return x
        in_norm, out_norm = (getattr(self, name) for name in self.norm_names)
        x = self.temporal_attention(in_norm(x, step), step.conditions.clip_length, x)
        return add_feed_forward(self.feed_forward, x, out_norm(x, step))


class MixedConvBlock(ConvBlock):
    """Convolution block of Conv1dAttn1dLayers: every convolution is followed by a 3x1x1 under the same residual.

    The drawing has two of each, Conv2D, TConv1D, Conv2D, TConv1D; the residual blocks of Kandinsky 3.0 hold four.
    """

    mixes_time = True

    def __init__(
        self, layers: Layers, config: UNetConfig, channels: tuple[int, int], kernel: int, resample: str | None
    ) -> None:
        super().__init__(layers, config, channels, kernel, resample)
        self.temporal_projection = layers.temporal_conv(channels[1], channels[1])

    def mix_time(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        """Mix the frames of a clip."""
        if not step.conditions.is_temporal:
            return add(x, residual)
        return run_in_time(self.temporal_projection, x, step.conditions.clip_length, residual)


class MixedAttentionBlock(AttentionBlock):
    """Attention block of Conv1dAttn1dLayers: positions (+), time (+), feed-forward (+)."""

    def __init__(self, layers: Layers, config: UNetConfig, channels: int) -> None:
        super().__init__(layers, config, channels)
        self.temporal_norm = ConditionalGroupNorm(layers, config, channels, first_rows(config))
        self.temporal_attention = temporal_self_attention(layers, config, channels)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        x = self._add_positions(x, step)
        if step.conditions.is_temporal:
            x = self.temporal_attention(self.temporal_norm(x, step), step.conditions.clip_length, x)
        return add_feed_forward(self.feed_forward, x, self.out_norm(x, step))


def mix_in_time(x: Tensor, step: Step, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """Run ``mix`` on the samples that mix over time and hand the others through; see ``Conditions.mixing``."""
    mixing = step.conditions.mixing
    if mixing is None or mixing == len(x):
        return mix(x)
    # Release 1.1: the unconditional half runs without any mixing over time, so its part of the work is dead.
    return torch.cat([mix(x[:mixing]), x[mixing:]]) if mixing else x


def merge_time(x: Tensor, mixed: Tensor, weight: Tensor, step: Step) -> Tensor:
    """Blend a spatial and a temporal result: ``(1 - a) * x + a * mixed`` with the trained scalar ``a``.

    Source: releases 1.0 and 1.1; the paper prints ``spatial + alpha * temporal`` instead
    (RELEASES.md, "Mixing over time").
    """
    weight = weight.to(x)
    if step.conditions.merge is not None:
        weight = weight * step.conditions.merge.to(x)[:, None, None, None]
    return torch.lerp(x, mixed, weight)


class TemporalMergeConv(nn.Module):
    """Convolution along time, blended with its input (release 1.1 interpolation)."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.temporal_merge = layers.parameter(1)
        self.temporal_projection = layers.temporal_conv(channels, channels)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        return mix_in_time(x, step, lambda part: self._mix(part, step))

    def _mix(self, x: Tensor, step: Step) -> Tensor:
        mixed = from_clips(self.temporal_projection(as_clips(x, step.conditions.clip_length)), x)
        return merge_time(x, mixed, self.temporal_merge, step)


class MergingConvBlockV10(ConvBlock):
    """Convolution block of the 1.0 interpolation: the temporal parts sit on the block itself."""

    mixes_time = True

    def __init__(
        self, layers: Layers, config: UNetConfig, channels: tuple[int, int], kernel: int, resample: str | None
    ) -> None:
        super().__init__(layers, config, channels, kernel, resample)
        self.temporal_merge = layers.parameter(1)
        self.temporal_projection = layers.temporal_conv(channels[1], channels[1])
        # Set by folding: the convolution with the merge in it.
        self.folded_time: nn.Module | None = None

    def mix_time(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        """Mix the gaps of a clip."""
        if self.folded_time is not None:
            return run_in_time(self.folded_time, x, step.conditions.clip_length, residual)
        mixed = run_in_time(self.temporal_projection, x, step.conditions.clip_length)
        return add(merge_time(x, mixed, self.temporal_merge, step), residual)


class MergingConvBlockV11(ConvBlock):
    """Convolution block of the 1.1 interpolation: the temporal parts are a submodule."""

    mixes_time = True

    def __init__(
        self, layers: Layers, config: UNetConfig, channels: tuple[int, int], kernel: int, resample: str | None
    ) -> None:
        super().__init__(layers, config, channels, kernel, resample)
        self.temporal_projection_new = TemporalMergeConv(layers, channels[1])

    def mix_time(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        """Mix the gaps of a clip."""
        return add(self.temporal_projection_new(x, step), residual)


class MergingAttentionBlock(nn.Module):
    """Temporal attention and feed-forward of the 1.1 interpolation, each blended by its own scalar."""

    def __init__(self, layers: Layers, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.in_norm = ConditionalGroupNorm(layers, config, channels)
        self.attention = TemporalSelfAttention(layers, config, channels)
        self.out_norm = ConditionalGroupNorm(layers, config, channels)
        self.feed_forward = feed_forward(layers, config, channels)
        self.temporal_merge1 = layers.parameter(1)
        self.temporal_merge2 = layers.parameter(1)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        return mix_in_time(x, step, lambda part: self._mix(part, step))

    def _mix(self, x: Tensor, step: Step) -> Tensor:
        mixed = self.attention(self.in_norm(x, step), step.conditions.clip_length)
        x = merge_time(x, mixed, self.temporal_merge1, step)
        mixed = add_feed_forward(self.feed_forward, None, self.out_norm(x, step))
        return merge_time(x, mixed, self.temporal_merge2, step)
