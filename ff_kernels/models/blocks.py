"""Spatial blocks of the U-Nets: conditional norm, residual block, attention block (RELEASES.md, "Sizes")."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..ops import attend, group_norm_mod, linear
from .conditions import Rows, Step
from .configs import UNetConfig
from .layers import Layers, add, is_pointwise, project, project_maps

# Bytes of intermediate results above which samples pass a feed-forward or a residual block in parts: large enough for
# a part to fill a device, small beside the maps that stay alive (the widest hidden ones are 377 MB at 512x512). A
# residual block has a dozen kernels to a feed-forward's two, so it is parted later.
HIDDEN_BYTES = 96 << 20
BLOCK_BYTES = 192 << 20


def samples_at_once(bytes_each: int, samples: int, limit: int, multiple: int | None = None) -> int:
    """Return how many samples to run at once so that intermediate results stay within a limit where possible.

    Args:
        bytes_each: bytes of the intermediate results of one sample.
        samples: samples in all.
        limit: bytes.
        multiple: samples that share a row of conditions; parts are whole rows or an even share of one. None if none do.
    """
    most = max(1, limit // max(1, bytes_each))
    if most >= samples:
        return samples
    if multiple is None:
        return most
    return most // multiple * multiple or max(k for k in range(1, most + 1) if multiple % k == 0)


class ConditionalGroupNorm(nn.Module):
    """Group norm without own gain, modulated by a row that ``context_mlp`` makes of the time vector.

    The row is made in ``UNet.prepare`` and looked up here by ``slot``; ``rows`` names the vector it comes from.
    """

    def __init__(self, layers: Layers, config: UNetConfig, channels: int, rows: Rows = "time") -> None:
        super().__init__()
        self.groups, self.rows, self.slot = config.groups, rows, -1
        self.context_mlp = nn.Sequential(nn.SiLU(), layers.linear(config.time_embed_dim, 2 * channels))

    def forward(self, x: Tensor, step: Step, activate: bool = False) -> Tensor:
        """Normalise ``[N, C, H, W]``, or neighbouring ones of the N samples, see ``Step.first``."""
        rows = step.conditions.modulation(self.slot, step.index)
        if len(x) < step.conditions.samples and self.rows != "position":
            share = step.conditions.samples // len(rows)
            rows = rows[step.first // share : -(-(step.first + len(x)) // share)]
        return group_norm_mod(x, rows, self.groups, cyclic=self.rows == "position", activate=activate)


class ConvBlock(nn.Module):
    """Norm, SiLU, optional doubling, convolution, optional mixing over time, optional halving."""

    mixes_time = False

    def __init__(
        self, layers: Layers, config: UNetConfig, channels: tuple[int, int], kernel: int, resample: str | None
    ) -> None:
        super().__init__()
        inputs, outputs = channels
        self.group_norm = ConditionalGroupNorm(layers, config, inputs)
        self.up_sample = layers.double(inputs) if resample == "up" else nn.Identity()
        self.projection = layers.conv(inputs, outputs, kernel)
        self.down_sample = layers.halve(outputs) if resample == "down" else nn.Identity()

    def mix_time(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        """Mix the samples of a clip and add ``residual``; a purely spatial block leaves them alone."""
        return add(x, residual)

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C', H', W']``, plus ``residual`` where the block does not resample."""
        x = self.up_sample(self.group_norm(x, step, activate=True))
        # A block that halves has no residual: only the last of four convolutions has one, and the third halves.
        early, late = (None, residual) if self.mixes_time else (residual, None)
        return self.down_sample(self.mix_time(project_maps(self.projection, x, residual=early), step, late))


class ResNetBlock(nn.Module):
    """Bottleneck of four convolutions (kernels 1, 3, 3, 1) with a shortcut; resamples once if asked to."""

    def __init__(
        self,
        layers: Layers,
        config: UNetConfig,
        channels: tuple[int, int],
        resample: str | None = None,
        conv_block: type[ConvBlock] = ConvBlock,
    ) -> None:
        super().__init__()
        self.mixes_time = conv_block.mixes_time
        # How many times the input is alive inside: shortcut and result; a doubling block has a third, all four times.
        self.growth = 12 if resample == "up" else 2
        inputs, outputs = channels
        hidden = max(inputs, outputs) // config.compression_ratio
        # Doubling happens before the second convolution, halving after the third.
        places = {"up": 1, "down": 2}
        widths = ((inputs, hidden), (hidden, hidden), (hidden, hidden), (hidden, outputs))
        self.resnet_blocks = nn.ModuleList(
            conv_block(layers, config, width, kernel, resample if places.get(resample) == i else None)
            for i, (width, kernel) in enumerate(zip(widths, (1, 3, 3, 1), strict=True))
        )
        self.shortcut_up_sample = layers.double(inputs) if resample == "up" else nn.Identity()
        self.shortcut_projection = layers.conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.shortcut_down_sample = layers.halve(outputs) if resample == "down" else nn.Identity()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C', H', W']``."""
        share = self._samples_at_once(x, step)
        if share == len(x):
            return self._run(x, step)
        out: Tensor | None = None
        for start in range(0, len(x), share):
            part = self._run(x[start : start + share], replace(step, first=start))
            if out is None:
                out = part.new_empty(len(x), *part.shape[1:]).contiguous(memory_format=torch.channels_last)
            out[start : start + share] = part
        return out

    def _samples_at_once(self, x: Tensor, step: Step) -> int:
        """Part the samples where a block looks at each alone and its layers cost nothing to call again."""
        if self.mixes_time or type(self.resnet_blocks[0].projection) is not nn.Conv2d:
            return len(x)
        conditions = step.conditions
        rows = conditions.modulation(self.resnet_blocks[0].group_norm.slot, step.index).shape[0]
        bytes_each = self.growth * x[:1].numel() * x.element_size()
        return samples_at_once(bytes_each, len(x), BLOCK_BYTES, conditions.samples // rows)

    def _run(self, x: Tensor, step: Step) -> Tensor:
        *blocks, last = self.resnet_blocks
        out = x
        for block in blocks:
            out = block(out, step)
        shortcut = project_maps(self.shortcut_projection, self.shortcut_up_sample(x))
        return last(out, step, self.shortcut_down_sample(shortcut))


class Attention(nn.Module):
    """Projections of an attention; keys and values of a text come from ``prepare``."""

    def __init__(self, layers: Layers, config: UNetConfig, inputs: int, channels: int, context_dim: int) -> None:
        super().__init__()
        self.heads = channels // config.head_dim
        self.to_query = layers.linear(inputs, channels, bias=False)
        self.to_key = layers.linear(context_dim, channels, bias=False)
        self.to_value = layers.linear(context_dim, channels, bias=False)
        self.output_layer = layers.linear(channels, channels, bias=False)
        # Set by folding: one layer to queries, keys and values.
        self.joint: nn.Module | None = None

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Attend from ``x`` ``[B, P, D]`` to ``key`` and ``value`` ``[B, L, C]``: ``[B, P, C]`` plus ``residual``."""
        out = attend(project(self.to_query, x), key, value, self.heads, mask)
        return project(self.output_layer, out, residual=residual)

    def project_all(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values of ``x`` ``[..., C]`` attending to itself."""
        if self.joint is not None:
            return project(self.joint, x).chunk(3, dim=-1)
        return tuple(project(layer, x) for layer in (self.to_query, self.to_key, self.to_value))

    def project_each(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return the projections of three inputs ``[..., C]`` that need not be the same."""
        if self.joint is not None:
            inputs, weights = (query, key, value), self.joint.weight.chunk(3)
            return tuple(linear(x, weight) for x, weight in zip(inputs, weights, strict=True))
        return self.to_query(query), self.to_key(key), self.to_value(value)

    def to_self(self, x: Tensor, residual: Tensor) -> Tensor:
        """Attend from ``x`` ``[B, P, C]`` to itself and add ``residual``."""
        return project(self.output_layer, attend(*self.project_all(x), self.heads), residual=residual)


class AttentionPooling(nn.Module):
    """One vector per row from the text: attention whose query is the mean token."""

    def __init__(self, layers: Layers, config: UNetConfig) -> None:
        super().__init__()
        self.attention = Attention(layers, config, config.context_dim, config.time_embed_dim, config.context_dim)

    def forward(self, context: Tensor, lengths: Tensor | None, valid: Tensor, mask: Tensor | None) -> Tensor:
        """Pool ``context`` ``[R, L, D]``, of which ``valid`` ``[R, L', D]`` may be attended to: ``[R, E]``."""
        # Both releases: the mean runs over all tokens passed in, one zero token after the prompt included.
        query = context.mean(dim=1, keepdim=True)
        if lengths is not None:
            query = query * (context.shape[1] / lengths.to(query))[:, None, None]
        key, value = self.attention.to_key(valid), self.attention.to_value(valid)
        return self.attention(query, key, value, mask).squeeze(1)


def feed_forward(layers: Layers, config: UNetConfig, channels: int) -> nn.Sequential:
    """Return the two 1x1 convolutions with SiLU between them that end every attention block."""
    hidden = config.expansion_ratio * channels
    return nn.Sequential(
        layers.conv(channels, hidden, 1, bias=False), nn.SiLU(), layers.conv(hidden, channels, 1, bias=False)
    )


def add_feed_forward(layers: nn.Sequential, residual: Tensor | None, x: Tensor) -> Tensor:
    """Return ``residual``, where there is one, plus the feed-forward of ``x``, both ``[N, C, H, W]``."""
    widen, _, narrow = layers

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        return project_maps(narrow, project_maps(widen, x, activate=True), residual=residual)

    hidden_bytes = x[:1].numel() // widen.in_channels * widen.out_channels * x.element_size()
    share = (
        samples_at_once(hidden_bytes, len(x), HIDDEN_BYTES) if is_pointwise(widen) and is_pointwise(narrow) else len(x)
    )
    if share == len(x):
        return run(x, residual)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    for start in range(0, len(x), share):
        part = slice(start, start + share)
        out[part] = run(x[part], None if residual is None else residual[part])
    return out


class AttentionBlock(nn.Module):
    """Attention over the positions of a frame (or from them to the text) and a feed-forward, each residual."""

    def __init__(self, layers: Layers, config: UNetConfig, channels: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.is_cross, self.slot = context_dim is not None, -1
        self.in_norm = ConditionalGroupNorm(layers, config, channels)
        self.attention = Attention(layers, config, channels, channels, context_dim or channels)
        self.out_norm = ConditionalGroupNorm(layers, config, channels)
        self.feed_forward = feed_forward(layers, config, channels)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        x = self._add_text(x, step) if self.is_cross else self._add_positions(x, step)
        return add_feed_forward(self.feed_forward, x, self.out_norm(x, step))

    def _add_hooked(self, x: Tensor, step: Step) -> Tensor:
        tokens = to_tokens(self.in_norm(x, step))  # [N, P, C]
        return x + to_maps(step.hooks.attend(self.attention, tokens, tuple(x.shape[-2:]), is_text=self.is_cross), x)

    def _add_positions(self, x: Tensor, step: Step) -> Tensor:
        if step.hooks.takes_positions:
            return self._add_hooked(x, step)
        tokens = to_tokens(self.in_norm(x, step))  # [N, P, C]
        return to_maps(self.attention.to_self(tokens, to_tokens(x)), x)

    def _add_text(self, x: Tensor, step: Step) -> Tensor:
        if step.hooks.takes_text:
            return self._add_hooked(x, step)
        conditions, constant = step.conditions, step.conditions.constants[self.slot]
        attending = conditions.attending(self.slot)
        parts = []
        if attending:
            key, value = conditions.keys_values[self.slot]
            first = x[:attending]
            # All frames of a row share its text: one long query per row instead of one text per frame.
            tokens = to_tokens(self.in_norm(first, step)).reshape(key.shape[0], -1, x.shape[1])  # [A, T * P, C]
            residual = to_tokens(first).reshape(tokens.shape)
            out = self.attention(tokens, key, value, conditions.key_mask, residual)
            parts.append(to_maps(out.reshape(attending, -1, x.shape[1]), x))
        if len(constant):
            rest = x[attending:]
            parts.append(rest + constant.repeat_interleave(len(rest) // len(constant), 0)[:, :, None, None])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class OutLayer(nn.Sequential):
    """Affine group norm, SiLU and the last 3x3 convolution."""

    def __init__(self, layers: Layers, config: UNetConfig) -> None:
        super().__init__(
            layers.group_norm(config.groups, config.init_channels),
            nn.SiLU(),
            layers.conv(config.init_channels, config.out_channels),
        )


class Embedding(nn.Sequential):
    """Two linear layers with SiLU over a sinusoid; index 0 is the sinusoid, which has no weights."""

    def __init__(self, layers: Layers, config: UNetConfig) -> None:
        super().__init__(
            nn.Identity(),
            layers.linear(config.init_channels, config.time_embed_dim),
            nn.SiLU(),
            layers.linear(config.time_embed_dim, config.time_embed_dim),
        )


def to_tokens(x: Tensor) -> Tensor:
    """View ``[N, C, H, W]`` as ``[N, H * W, C]``; no copy for channels-last activations."""
    return x.flatten(2).transpose(1, 2)


def to_maps(tokens: Tensor, like: Tensor) -> Tensor:
    """View ``[N, H * W, C]`` as ``[N, C, H, W]`` with the sides of ``like``."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[-2:])
