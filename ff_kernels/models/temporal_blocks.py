"""Blocks that mix the samples of a clip over time (paper section 4.2; released variant Conv1dAttn1dBlocks)."""

from torch import Tensor, nn

from ..ops import attend_over_time
from .blocks import Attention, ConditionalGroupNorm, ConvBlock, add_feed_forward, feed_forward, to_maps, to_tokens
from .conditions import Rows, Step
from .configs import UNetConfig
from .layers import Layers, add, is_pointwise, project, project_maps


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


class TemporalResNetBlock(nn.Module):
    """Residual bottleneck of four convolutions along time (kernels 1, 3, 3, 1), each after norm and SiLU."""

    def __init__(self, layers: Layers, config: UNetConfig, channels: int, rows: Rows) -> None:
        super().__init__()
        hidden = channels // config.compression_ratio
        widths = ((channels, hidden), (hidden, hidden), (hidden, hidden), (hidden, channels))
        self.temporal_resnet_blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    ConditionalGroupNorm(layers, config, inputs, rows),
                    nn.SiLU(),
                    layers.temporal_conv(inputs, outputs, kernel),
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
            out = run_in_time(conv, out, step.conditions.num_frames, residual=x if i == last else None)
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


class TemporalAttentionBlock(nn.Module):
    """Temporal attention and its own feed-forward, each residual; norms are named as each release names them."""

    def __init__(self, layers: Layers, config: UNetConfig, channels: int) -> None:
        super().__init__()
        is_v10 = config.family == "1.0"
        # Release 1.0: the first norm is told the frame position only, the second the time only; release 1.1
        # tells both norms the sum of the two (golden v10_keyframe_unet, v11_keyframe_unet).
        first: Rows = "position" if is_v10 else "both"
        second: Rows = "time" if is_v10 else "both"
        names = ("in_norm", "out_norm") if is_v10 else ("temporal_norm", "ff_norm")
        self.norm_names = names
        self.add_module(names[0], ConditionalGroupNorm(layers, config, channels, first))
        self.temporal_attention = TemporalSelfAttention(layers, config, channels)
        self.add_module(names[1], ConditionalGroupNorm(layers, config, channels, second))
        self.feed_forward = feed_forward(layers, config, channels)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        if not step.conditions.is_temporal:
            return x
        in_norm, out_norm = (getattr(self, name) for name in self.norm_names)
        x = self.temporal_attention(in_norm(x, step), step.conditions.num_frames, x)
        return add_feed_forward(self.feed_forward, x, out_norm(x, step))


def merge_time(x: Tensor, mixed: Tensor, weight: Tensor, step: Step) -> Tensor:
    """Blend a spatial and a temporal result: ``(1 - a) * x + a * mixed`` with the trained scalar ``a``.

    Source: releases 1.0 and 1.1; the paper prints ``spatial + alpha * temporal`` instead (paper.md, 1.12).
    """
    weight = weight.to(x)
    if step.conditions.merge is not None:
        # Release 1.1: 0 for the unconditional half, which so runs without any mixing over time.
        weight = weight * step.conditions.merge.to(x)[:, None, None, None]
    return (1 - weight) * x + weight * mixed


class TemporalMergeConv(nn.Module):
    """Convolution along time, blended with its input (release 1.1 interpolation)."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.temporal_merge = layers.parameter(1)
        self.temporal_projection = layers.temporal_conv(channels, channels)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        mixed = from_clips(self.temporal_projection(as_clips(x, step.conditions.num_frames)), x)
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
            return run_in_time(self.folded_time, x, step.conditions.num_frames, residual)
        return add(TemporalMergeConv.forward(self, x, step), residual)


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
        mixed = self.attention(self.in_norm(x, step), step.conditions.num_frames)
        x = merge_time(x, mixed, self.temporal_merge1, step)
        mixed = self.feed_forward(self.out_norm(x, step))
        return merge_time(x, mixed, self.temporal_merge2, step)
