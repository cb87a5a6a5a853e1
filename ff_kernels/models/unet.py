"""The skeleton that all U-Nets share: levels down and up, embeddings, and the tables of ``prepare``."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from .blocks import AttentionBlock, AttentionPooling, ConditionalGroupNorm, Embedding, OutLayer, ResNetBlock
from .conditions import Conditions, Step, part_rows, sinusoid
from .configs import UNetConfig
from .hooks import NO_HOOKS, Hooks, Place
from .layers import Layers


class BlockSet:
    """The blocks of one level kind; the U-Nets and their temporal variants differ only here."""

    is_time_last = False

    def __init__(self, layers: Layers, config: UNetConfig) -> None:
        self.layers, self.config = layers, config

    def residual(self, inputs: int, outputs: int, resample: str | None = None) -> nn.Module:
        """Spatial residual block."""
        return ResNetBlock(self.layers, self.config, (inputs, outputs), resample)

    def self_attention(self, channels: int) -> nn.Module:
        """Attention block over the positions of a frame."""
        return AttentionBlock(self.layers, self.config, channels)

    def temporal_residual(self, channels: int) -> nn.Module:
        """Residual block over time, or an identity."""
        return nn.Identity()

    def temporal_attention(self, channels: int) -> nn.Module:
        """Attention block over time, or an identity."""
        return nn.Identity()


class _Level(nn.Module):
    # Places in a unit's list, in the order in which its blocks run.
    order: tuple[int, ...]

    def units(self) -> list[list[nn.Module]]:
        """Return the blocks of each unit in the order in which they run."""
        return [[unit[i] for i in self.order] for unit in self.resnet_attn_blocks]

    def ends(self) -> list[nn.Module]:
        """Return the blocks before the units of a down level, or behind those of an up level, in their order."""
        return [self.self_attention_block, self.temporal_attention_block]

    def _add_attention(self, blocks: BlockSet, channels: int, self_attention: bool) -> None:
        self.is_time_last = blocks.is_time_last
        self.self_attention_block = nn.Identity()
        self.temporal_attention_block = nn.Identity()
        if self_attention:
            self.self_attention_block = blocks.self_attention(channels)
            self.temporal_attention_block = blocks.temporal_attention(channels)


def _unit(
    blocks: BlockSet, residuals: tuple[nn.Module, nn.Module], width: int, temporal: int, context: bool
) -> nn.ModuleList:
    """Two residual blocks around a text attention; the list order is that of the releases' state dict."""
    text = AttentionBlock(blocks.layers, blocks.config, width, blocks.config.context_dim) if context else nn.Identity()
    times = (blocks.temporal_residual(temporal), blocks.temporal_residual(temporal))
    return nn.ModuleList([residuals[0], text, residuals[1], *times])


class DownLevel(_Level):
    """Self and temporal attention on the input width, then units; the last one halves the sides."""

    order = (0, 3, 1, 2, 4)
    place: Place = "input"

    def __init__(
        self, blocks: BlockSet, widths: tuple[int, int], units: int, context: bool, attention: bool, halve: bool
    ) -> None:
        super().__init__()
        inputs, outputs = widths
        self._add_attention(blocks, inputs, attention)
        self.resnet_attn_blocks = nn.ModuleList()
        for i in range(units):
            resample = "down" if halve and i == units - 1 else None
            pair = (blocks.residual(inputs, outputs), blocks.residual(outputs, outputs, resample))
            self.resnet_attn_blocks.append(_unit(blocks, pair, outputs, outputs, context))
            inputs = outputs

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C', H', W']``."""
        for block in self.ends():
            x = _run(block, x, step)
        for i, unit in enumerate(self.units()):
            if i:
                x = step.hooks.leave_skip(x)
                step.hooks.enter(self.place)
            for block in unit:
                x = _run(block, x, step)
            x = step.hooks.leave(x)
        return x


class UpLevel(_Level):
    """Units, the first of which doubles the sides, then temporal and self attention on the output width."""

    order = (3, 0, 1, 4, 2)

    def __init__(
        self, blocks: BlockSet, widths: tuple[int, int, int], units: int, context: bool, attention: bool, double: bool
    ) -> None:
        super().__init__()
        width, skip, outputs = widths
        self.place: Place = "output" if skip else "middle"
        self.resnet_attn_blocks = nn.ModuleList()
        for i in range(units):
            inputs = width + skip if i == 0 else width
            outputs_here = outputs if i == units - 1 else width
            resample = "up" if double and i == 0 else None
            pair = (blocks.residual(inputs, inputs, resample), blocks.residual(inputs, outputs_here))
            self.resnet_attn_blocks.append(_unit(blocks, pair, inputs, inputs, context))
        self._add_attention(blocks, outputs, attention)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C', H', W']``."""
        for i, unit in enumerate(self.units()):
            if i:
                step.hooks.enter(self.place)
            for block in unit:
                x = _run(block, x, step)
        for block in self.ends():
            x = _run(block, x, step)
        return x

    def ends(self) -> list[nn.Module]:
        """Return the attention blocks in the order of the variant."""
        pair = super().ends()
        return pair if self.is_time_last else pair[::-1]


class UNet(nn.Module):
    """Base of the U-Nets; see ``KeyframeUNet``, ``InterpolationUNet`` and ``MaskedUNet``.

    Args:
        config: sizes, family and stage.
        operations: namespace of weighted layers, ``torch.nn`` or a host's own.
        device: where the weights are made, "meta" included.
        dtype: dtype of the weights.
    """

    block_set: type[BlockSet]

    def __init__(
        self, config: UNetConfig, *, operations: Any = nn, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        layers = Layers(operations, device, dtype)
        self.to_time_embed = Embedding(layers, config)
        self.feature_pooling = AttentionPooling(layers, config)
        self._add_embeddings(layers)
        self.in_layer = layers.conv(config.num_channels, config.init_channels)
        self._add_levels(self.block_set(layers, config))
        self.out_layer = OutLayer(layers, config)
        self._number_slots()

    def _add_embeddings(self, layers: Layers) -> None:
        raise NotImplementedError

    def _add_levels(self, blocks: BlockSet) -> None:
        config = self.config
        widths = [config.init_channels, *(config.model_channels * mult for mult in config.dim_mult)]
        pairs = list(itertools.pairwise(widths))
        options = list(zip(config.num_blocks, config.add_cross_attention, config.add_self_attention, strict=True))
        last = len(pairs) - 1
        self.down_samples = nn.ModuleList(
            DownLevel(blocks, pair, *options[i], halve=i != last) for i, pair in enumerate(pairs)
        )
        self.up_samples = nn.ModuleList(
            UpLevel(blocks, (pairs[i][1], pairs[i][1] if i != last else 0, pairs[i][0]), *options[i], double=i != last)
            for i in reversed(range(len(pairs)))
        )

    def conditioner_modules(self) -> list[nn.Module]:
        """Return what a step does without (ops/EXACTNESS.md, "Weights that only prepare reads")."""
        embeddings = [module for module in self.children() if isinstance(module, Embedding)]
        texts = [layer for text in self._texts for layer in (text.attention.to_key, text.attention.to_value)]
        return [self.feature_pooling, *embeddings, *texts, *(norm.context_mlp for norm in self._norms)]

    def step_blocks(self) -> list[nn.Module]:
        """Return the blocks of all levels in the order in which a step runs them."""
        down = [block for level in self.down_samples for part in (level.ends(), *level.units()) for block in part]
        up = [block for level in self.up_samples for part in (*level.units(), level.ends()) for block in part]
        return [block for block in (*down, *up) if not isinstance(block, nn.Identity)]

    def layers_read_apart(self) -> list[nn.Module]:
        """Return the layers inside of blocks that ``prepare`` calls as well."""
        return [text.attention.output_layer for text in self._texts]

    def outer_blocks(self) -> list[nn.Module]:
        """Return the blocks of the outermost level: little memory, and in what they compute rounding shows most."""
        levels = (self.down_samples[0], self.up_samples[-1])
        return [block for level in levels for part in (level.ends(), *level.units()) for block in part]

    def looked_up(self) -> list[nn.Module]:
        """Return nothing: the U-Nets have no large table that is read by rows."""
        return []

    def table_values(self, steps: int, rows: int, samples: int, tokens: int) -> int:
        """Return the most numbers that the tables of ``prepare`` hold.

        Args:
            steps: of the run.
            rows: prompts times guidance branches.
            samples: samples of all rows.
            tokens: of the longest prompt.
        """
        told = {"time": steps * rows, "position": samples, "both": steps * samples}
        modulations = sum(told[norm.rows] * norm.context_mlp[-1].out_features for norm in self._norms)
        widths = sum(text.attention.to_key.out_features for text in self._texts)
        return modulations + 2 * rows * (tokens + 1) * widths

    def _number_slots(self) -> None:
        self._norms = [m for m in self.modules() if isinstance(m, ConditionalGroupNorm)]
        self._texts = [m for m in self.modules() if isinstance(m, AttentionBlock) and m.is_cross]
        for modules in (self._norms, self._texts):
            for slot, module in enumerate(modules):
                module.slot = slot

    def embed(self, embedding: nn.Module, values: Tensor, like: Tensor) -> Tensor:
        """Embed numbers ``[...]`` by one of the embeddings: ``[..., E]`` in the dtype and on the device of ``like``."""
        return embedding(sinusoid(values.to(like.device), self.config.init_channels).to(like.dtype))

    def _tables(self, context: Tensor, mask: Tensor | None, vectors: dict[str, Tensor], **shape: Any) -> Conditions:
        """Run every modulation and text projection once, on the vectors of each kind of row."""
        modulations = tuple(
            norm.context_mlp(vectors[norm.rows]) if norm.rows in vectors else None for norm in self._norms
        )
        texts, mask, single = part_rows(context, mask)
        attentions = [t.attention for t in self._texts]
        keys_values = tuple((map_rows(a.to_key, texts), map_rows(a.to_value, texts)) for a in attentions)
        constants = tuple(map_rows(a.output_layer, map_rows(a.to_value, single)) for a in attentions)
        return Conditions(modulations, keys_values, constants, mask, **shape)

    def _time_vectors(self, timesteps: Tensor, context: Tensor) -> Tensor:
        """Embed ``[S]`` or ``[S, R]`` timesteps: ``[S, 1 or R, E]``."""
        times = timesteps if timesteps.ndim == 2 else timesteps[:, None]
        return self.embed(self.to_time_embed, times, context)

    def _check(self, x: Tensor, conditions: Conditions) -> None:
        config, multiple = self.config, self.config.side_multiple
        fits = x.ndim == 4 and x.shape[0] == conditions.samples and x.shape[1] == config.num_channels
        if not fits or x.shape[2] % multiple or x.shape[3] % multiple:
            raise ShapeError(
                f"expected [{conditions.samples}, {config.num_channels}, h, w] with h and w multiples of {multiple} "
                f"for the {config.stage} U-Net of release {config.family}, got {list(x.shape)}: check frames and size"
            )

    def _run_levels(self, x: Tensor, step: Step) -> Tensor:
        hooks = step.hooks
        skips = []
        x = hooks.leave_skip(hooks.start(x))
        for level in self.down_samples:
            hooks.enter(level.place)
            skips.append(level(x, step))
            x = hooks.leave_skip(skips[-1])
        skips.pop()
        for i, level in enumerate(self.up_samples):
            hooks.enter(level.place)
            x = level(torch.cat(hooks.join(x, skips.pop()), dim=1) if i else x, step)
        return self.out_layer(hooks.finish(x))

    def forward(self, x: Tensor, conditions: Conditions, step: int = 0, hooks: Hooks = NO_HOOKS) -> Tensor:
        """Predict eps or v.

        Args:
            x: ``[N, num_channels, h, w]``, h and w multiples of ``config.side_multiple``.
            conditions: what ``prepare`` returned for N samples.
            step: which of the prepared timesteps this is.
            hooks: where a host steps in.

        Returns:
            ``[N, out_channels, h, w]``.

        Raises:
            ShapeError: if x does not fit the network or the prepared conditions.
        """
        self._check(x, conditions)
        return self._run_levels(self.in_layer(x), Step(conditions, step, hooks=hooks))


def _run(block: nn.Module, x: Tensor, step: Step) -> Tensor:
    return x if isinstance(block, nn.Identity) else block(x, step)


def expand_rows(values: Tensor | float | None, rows: int, device: torch.device) -> Tensor | None:
    """Turn a number or ``[1]`` or ``[rows]`` values into ``[rows]`` on ``device``; None stays None."""
    if values is None:
        return None
    values = torch.as_tensor(values).to(device).reshape(-1)
    return values.expand(rows) if values.shape[0] == 1 else values


def map_rows(layer: nn.Module, rows: Tensor) -> Tensor:
    """Run a linear layer on rows ``[R, ...]``; a host's quantised ones take no R of 0."""
    return layer(rows) if len(rows) else rows.new_empty(*rows.shape[:-1], layer.out_features)
