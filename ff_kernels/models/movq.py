"""MoVQ: pixels to latents and back, with the image decoder and every video decoder of the paper's table 3."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ShapeError
from ..ops import attend, attend_over_time, modulate_by_maps, spatial_norm_act
from .configs import MoVQConfig
from .layers import Layers, is_pointwise, project_maps

_EPS = 1e-6


class SpatialNorm(nn.Module):
    """Group norm; in the decoder its result is modulated by two 1x1 convolutions of the latent."""

    def __init__(self, layers: Layers, config: MoVQConfig, channels: int, is_decoder: bool) -> None:
        super().__init__()
        self.norm_layer = layers.group_norm(config.groups, channels, eps=_EPS)
        self.is_decoder = is_decoder
        if is_decoder:
            self.conv_y = layers.conv(config.z_channels, channels, 1)
            self.conv_b = layers.conv(config.z_channels, channels, 1)

    def forward(self, x: Tensor, latents: Tensor | None = None, activate: bool = False) -> Tensor:
        """Normalise ``[N, C, H, W]``; ``latents`` ``[N or 1, z, h, w]`` modulate it where given; then SiLU if asked."""
        norm = self.norm_layer
        if latents is None:
            return F.silu(norm(x)) if activate else norm(x)
        convs = (self.conv_y, self.conv_b)
        if type(norm) is nn.GroupNorm and all(is_pointwise(conv) for conv in convs):
            maps = ((conv.weight.flatten(1), conv.bias) for conv in convs)
            return spatial_norm_act(
                x, latents, *maps, (norm.weight, norm.bias), norm.num_groups, activate=activate, eps=norm.eps
            )
        # A host's layer may hold its weights anywhere until it is called.
        x = modulate_by_maps(norm(x), *(conv(latents) for conv in convs))
        return F.silu(x) if activate else x


class ResnetBlock(nn.Module):
    """Norm, SiLU, 3x3 twice with a shortcut; in a temporal decoder a convolution over time follows each 3x3."""

    def __init__(
        self, layers: Layers, config: MoVQConfig, channels: tuple[int, int], decoder: bool, temporal: bool = False
    ) -> None:
        super().__init__()
        inputs, outputs = channels
        self.is_3d = decoder and config.build_3D_decoder
        conv = layers.conv3d if self.is_3d else layers.conv
        self.norm1 = SpatialNorm(layers, config, inputs, decoder)
        self.conv1 = conv(inputs, outputs)
        self.norm2 = SpatialNorm(layers, config, outputs, decoder)
        self.conv2 = conv(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = layers.conv(inputs, outputs, 1)
        self.has_shortcut = inputs != outputs
        self.is_temporal = temporal
        if temporal:
            self.temporal_merge1 = layers.parameter(1)
            self.temporal_projection1 = _over_time(layers, outputs, config.temporal_kernel_size)
            self.temporal_merge2 = layers.parameter(1)
            self.temporal_projection2 = _over_time(layers, outputs, config.temporal_kernel_size)

    def _mix(self, x: Tensor, conv: nn.Module, merge: Tensor, frames: int) -> Tensor:
        return torch.lerp(x, _run_over_time(conv, x, frames), merge.to(x))

    def forward(self, x: Tensor, latents: Tensor | None = None, frames: int = 1) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C', H, W]``; ``frames`` is the length of a clip inside N."""
        h = self.norm1(x, latents, activate=True)
        h = _run_over_time(self.conv1, h, frames) if self.is_3d else self.conv1(h)
        if self.is_temporal:
            h = self._mix(h, self.temporal_projection1, self.temporal_merge1, frames)
        h = self.norm2(h, latents, activate=True)
        is_plain = not (self.is_3d or self.is_temporal or self.has_shortcut)
        if is_plain:
            return project_maps(self.conv2, h, residual=x)
        h = _run_over_time(self.conv2, h, frames) if self.is_3d else self.conv2(h)
        if self.is_temporal:
            h = self._mix(h, self.temporal_projection2, self.temporal_merge2, frames)
        return project_maps(self.nin_shortcut, x, residual=h) if self.has_shortcut else x + h


class TemporalResnetBlock(nn.Module):
    """The row "ResNet block": norm, SiLU, 3x1x1 twice with a shortcut."""

    def __init__(self, layers: Layers, config: MoVQConfig, channels: int) -> None:
        super().__init__()
        self.norm1 = SpatialNorm(layers, config, channels, True)
        self.conv1 = layers.temporal_conv(channels, channels)
        self.norm2 = SpatialNorm(layers, config, channels, True)
        self.conv2 = layers.temporal_conv(channels, channels)

    def forward(self, x: Tensor, latents: Tensor, frames: int) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        h = _run_over_time(self.conv1, self.norm1(x, latents, activate=True), frames)
        h = _run_over_time(self.conv2, self.norm2(h, latents, activate=True), frames)
        return x + h


class _Attention(nn.Module):
    def __init__(self, layers: Layers, config: MoVQConfig, channels: int, decoder: bool) -> None:
        super().__init__()
        self.norm = SpatialNorm(layers, config, channels, decoder)
        self.q = layers.conv(channels, channels, 1)
        self.k = layers.conv(channels, channels, 1)
        self.v = layers.conv(channels, channels, 1)
        self.proj_out = layers.conv(channels, channels, 1)

    def _tokens(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values ``[N, H * W, C]`` of normalised ``[N, C, H, W]``."""
        return tuple(project_maps(conv, x).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))


class AttnBlock(_Attention):
    """One-headed attention over the positions of a frame."""

    def forward(self, x: Tensor, latents: Tensor | None = None) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        h = attend(*self._tokens(self.norm(x, latents)), heads=1).transpose(1, 2).unflatten(2, x.shape[-2:])
        return project_maps(self.proj_out, h, residual=x)


class TemporalAttnBlock(_Attention):
    """One-headed attention over the frames at each position."""

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        # Release 1.1: the latent map is not passed on, conv_y and conv_b are stored but unused (golden
        # v11_video_movq), so the released weights were trained with the plain norm.
        tokens = (t.unflatten(0, (-1, frames)) for t in self._tokens(self.norm(x)))  # [B, T, H * W, C]
        h = attend_over_time(*tokens, heads=1).flatten(0, 1).transpose(1, 2).unflatten(2, x.shape[-2:])
        return project_maps(self.proj_out, h, residual=x)


class Downsample(nn.Module):
    """3x3 convolution with stride 2, padded at the right and the bottom only."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.conv = layers.halve(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C, H / 2, W / 2]``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest doubling and a 3x3 convolution."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.conv = layers.conv(channels, channels)
        # Set by folding: both in one.
        self.doubled: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C, 2H, 2W]``."""
        if self.doubled is not None:
            return self.doubled(x)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Parts(nn.Module):
    """A bare container, so that the state-dict names of the releases come out."""


class Encoder(nn.Module):
    """Pixels ``[N, 3, H, W]`` in -1..1 to latents ``[N, z, H / factor, W / factor]``."""

    def __init__(self, layers: Layers, config: MoVQConfig) -> None:
        super().__init__()
        resolution, channels = config.resolution, config.ch
        self.conv_in = layers.conv(config.in_channels, channels)
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.ch_mult):
            part = _Parts()
            part.block, part.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(config.num_res_blocks):
                part.block.append(ResnetBlock(layers, config, (channels, config.ch * mult), False))
                channels = config.ch * mult
                if resolution in config.attn_resolutions:
                    part.attn.append(AttnBlock(layers, config, channels, False))
            if level != len(config.ch_mult) - 1:
                part.downsample = Downsample(layers, channels)
                resolution //= 2
            self.down.append(part)
        self.mid = _Parts()
        self.mid.block_1 = ResnetBlock(layers, config, (channels, channels), False)
        self.mid.attn_1 = AttnBlock(layers, config, channels, False)
        self.mid.block_2 = ResnetBlock(layers, config, (channels, channels), False)
        self.norm_out = SpatialNorm(layers, config, channels, False)
        self.conv_out = layers.conv(channels, config.z_channels * (2 if config.double_z else 1))

    def forward(self, x: Tensor) -> Tensor:
        """Encode pixels; see the class."""
        x = self.conv_in(x)
        for part in self.down:
            for i, block in enumerate(part.block):
                x = block(x)
                if len(part.attn):
                    x = part.attn[i](x)
            if hasattr(part, "downsample"):
                x = part.downsample(x)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(self.norm_out(x, activate=True))


class Decoder(nn.Module):
    """Latents to pixels, modulated at every norm by the latents themselves."""

    def __init__(self, layers: Layers, config: MoVQConfig) -> None:
        super().__init__()
        levels = len(config.ch_mult)
        resolution = config.resolution // config.factor
        channels = config.ch * config.ch_mult[-1]
        self.config = config
        self.conv_in = layers.conv(config.z_channels, channels)
        self.mid = _Parts()
        mid_temporal = config.temporal and config.temporal_mid_blocks
        self.mid.block_1 = ResnetBlock(layers, config, (channels, channels), True, mid_temporal)
        self.mid.attn_1 = AttnBlock(layers, config, channels, True)
        if config.temporal_attention_block:
            self.mid.temporal_attn_1 = TemporalAttnBlock(layers, config, channels, True)
        self.mid.block_2 = ResnetBlock(layers, config, (channels, channels), True, mid_temporal)
        if config.temporal_blocks:
            self.mid.temporal_block_1 = TemporalResnetBlock(layers, config, channels)
            self.mid.temporal_block_2 = TemporalResnetBlock(layers, config, channels)
        parts = []
        for level in reversed(range(levels)):
            part = _Parts()
            part.block, part.attn = nn.ModuleList(), nn.ModuleList()
            part.temporal_attn, part.temporal_block = nn.ModuleList(), nn.ModuleList()
            outputs = config.ch * config.ch_mult[level]
            for _ in range(config.num_res_blocks + 1):
                part.block.append(ResnetBlock(layers, config, (channels, outputs), True, config.temporal))
                channels = outputs
                if config.temporal_blocks:
                    part.temporal_block.append(TemporalResnetBlock(layers, config, channels))
                if resolution in config.attn_resolutions:
                    part.attn.append(AttnBlock(layers, config, channels, True))
                    if config.temporal_attention_block:
                        part.temporal_attn.append(TemporalAttnBlock(layers, config, channels, True))
            if level != 0:
                part.upsample = Upsample(layers, channels)
                resolution *= 2
            parts.append(part)
        self.up = nn.ModuleList(reversed(parts))
        self.norm_out = SpatialNorm(layers, config, channels, True)
        self.conv_out = layers.conv(channels, config.out_ch)

    def forward(self, x: Tensor, latents: Tensor, frames: int, shared_map: bool) -> Tensor:
        """Decode ``x`` ``[N, z, h, w]`` under the modulation ``latents`` of the same shape."""
        # Release 1.1: the attention blocks loop over the frames but hand the whole latent to the norm, which
        # then takes frame 0 of the chunk for every frame (golden v11_video_movq, v11_movq).
        attention_map = latents.unflatten(0, (-1, frames))[:, 0].repeat_interleave(frames, 0) if shared_map else latents
        x = self.conv_in(x)
        x = self.mid.block_1(x, latents, frames)
        x = self.mid.attn_1(x, attention_map)
        if self.config.temporal_attention_block:
            x = self.mid.temporal_attn_1(x, frames)
        if self.config.temporal_blocks:
            x = self.mid.temporal_block_1(x, latents, frames)
        x = self.mid.block_2(x, latents, frames)
        if self.config.temporal_blocks:
            x = self.mid.temporal_block_2(x, latents, frames)
        for part in reversed(self.up):
            for i, block in enumerate(part.block):
                x = block(x, latents, frames)
                if len(part.temporal_block):
                    x = part.temporal_block[i](x, latents, frames)
                if len(part.attn):
                    x = part.attn[i](x, attention_map)
                if len(part.temporal_attn):
                    x = part.temporal_attn[i](x, frames)
            if hasattr(part, "upsample"):
                x = part.upsample(x)
        return self.conv_out(self.norm_out(x, latents, activate=True))


class MoVQ(nn.Module):
    """The autoencoder of both releases (Sber-MoVQGAN; RELEASES.md, "Latents are neither scaled nor looked up").

    Args:
        config: sizes and temporal parts.
        operations: namespace of weighted layers, ``torch.nn`` or a host's own.
        device: where the weights are made, "meta" included.
        dtype: dtype of the weights.
    """

    def __init__(
        self, config: MoVQConfig, *, operations: Any = nn, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        layers = Layers(operations, device, dtype)
        self.config = config
        self.encoder = Encoder(layers, config)
        self.quant_conv = layers.conv(config.z_channels, config.z_channels, 1)
        self.post_quant_conv = layers.conv(config.z_channels, config.z_channels, 1)
        self.decoder = Decoder(layers, config)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents ``[N, z, H / factor, W / factor]``, unscaled.

        Args:
            pixels: ``[N, 3, H, W]`` in -1..1, sides positive multiples of ``config.factor``.

        Raises:
            ShapeError: if a side is not a positive multiple of the factor.
        """
        factor = self.config.factor
        if pixels.ndim != 4 or any(side % factor or not side for side in pixels.shape[-2:]):
            raise ShapeError(
                f"MoVQ encode expected [N, 3, H, W] with sides that are positive multiples of {factor}, got "
                f"{list(pixels.shape)}: resize or crop the picture first"
            )
        return self.quant_conv(self.encoder(pixels))

    def decode(self, latents: Tensor, *, frames: int | None = None, shared_map: bool = False) -> Tensor:
        """Return pixels ``[N, 3, factor * h, factor * w]``, about -1..1, not clamped.

        Args:
            latents: ``[N, z, h, w]``, clips one after the other.
            frames: frames of one clip, a divisor of N; default N. Temporal layers look no further than this.
            shared_map: modulate every attention block by frame 0 of its clip, as release 1.1 does.

        Source: release 1.0 (golden ``v10_movq``) and, with ``shared_map``, release 1.1 (golden
        ``v11_movq``, ``v11_video_movq``).

        Raises:
            ShapeError: if the latents do not have ``z_channels`` channels or ``frames`` does not divide N.
        """
        frames = latents.shape[0] if frames is None else frames
        if latents.ndim != 4 or latents.shape[1] != self.config.z_channels or latents.shape[0] % max(frames, 1):
            raise ShapeError(
                f"MoVQ decode expected [N, {self.config.z_channels}, h, w] with N a multiple of {frames} frames, got "
                f"{list(latents.shape)}: pass the latents of whole clips"
            )
        return self.decoder(self.post_quant_conv(latents), latents, frames, shared_map)


def _over_time(layers: Layers, channels: int, kernel: tuple[int, int, int]) -> nn.Module:
    if tuple(kernel[1:]) == (1, 1):
        return layers.temporal_conv(channels, channels, kernel[0])
    return layers.conv3d(channels, channels, kernel)


def _run_over_time(conv: nn.Module, x: Tensor, frames: int) -> Tensor:
    """Run a convolution over time on ``[B * T, C, H, W]``."""
    size = x.shape[-2:]
    x = x.unflatten(0, (-1, frames)).transpose(1, 2)  # [B, C, T, H, W]
    x = conv(x.flatten(3)).unflatten(3, size) if tuple(conv.kernel_size[1:]) == (1, 1) else conv(x)
    return x.transpose(1, 2).flatten(0, 1)
