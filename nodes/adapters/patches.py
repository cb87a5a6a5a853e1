"""What core's nodes hang on a U-Net's forward, run where it means the same in these U-Nets.

Core's U-Net patches know blocks as ("input" | "middle" | "output", number). Here every pair of residual blocks of a
down level is an input block (number 0 is the first layer), the first up level, which takes no skip, is the middle, and
the pairs of the other up levels are output blocks. A level keeps one skip where core keeps one per block. Frames are
pictures of a batch to a patch, as in core's own video U-Nets.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...ff_kernels.models.blocks import Attention
from ...ff_kernels.models.conditions import cut_context
from ...ff_kernels.models.configs import UNetConfig
from ...ff_kernels.models.hooks import NO_HOOKS, Hooks, Place
from ...ff_kernels.ops import attend

BLOCK_PATCHES = ("input_block_patch", "input_block_patch_after_skip", "output_block_patch")
# Core's names of attention to the positions of a picture, and to the text.
POSITIONS, TEXT = "attn1", "attn2"
ATTENTION_PATCHES = tuple(f"{name}_{kind}" for name in (POSITIONS, TEXT) for kind in ("patch", "output_patch"))
READ_PATCHES = BLOCK_PATCHES + ATTENTION_PATCHES
OVERRIDE = "optimized_attention_override"
# Name of a run's ``Notice`` among core's transformer options.
NOTICE = "fusionframes_notice"
# Core's options of a forward that these U-Nets have nothing for.
UNREAD_OPTIONS = ("rope_options",)


def hooks_of(
    options: dict[str, Any], config: UNetConfig, context: Tensor, mask: Tensor, run_attention: Callable[..., Tensor]
) -> Hooks:
    """Return the hooks of one forward, those that do nothing where there is no patch to run.

    Args:
        options: core's transformer options.
        config: of the network.
        context: ``[R, L, D]`` text of each row of the batch.
        mask: ``[R, L]``, non-zero where a token is valid.
        run_attention: core's attention function, for a MODEL that chooses another one.
    """
    if NOTICE in options:
        options[NOTICE](unread(options))
    patches, replace = options.get("patches", {}), options.get("patches_replace", {})
    has_any = any(patches.get(name) for name in READ_PATCHES) or any(replace.get(name) for name in (POSITIONS, TEXT))
    if not has_any and OVERRIDE not in options:
        return NO_HOOKS
    return PatchHooks(options, config, context, mask, run_attention)


class PatchHooks(Hooks):
    """Core's patches in the places of one forward; arguments as of ``hooks_of``."""

    def __init__(
        self,
        options: dict[str, Any],
        config: UNetConfig,
        context: Tensor,
        mask: Tensor,
        run_attention: Callable[..., Tensor],
    ) -> None:
        self.options, self.config = dict(options), config
        self.context, self.mask = fill_null_rows(context, mask)
        self.run_attention = run_attention
        self.patches: Mapping[str, list[Any]] = options.get("patches", {})
        self.replace: Mapping[str, dict[Any, Any]] = options.get("patches_replace", {})
        self.takes_positions, self.takes_text = self._takes(POSITIONS), self._takes(TEXT)
        self.block: tuple[Place, int] = ("input", 0)
        self.counts = {POSITIONS: 0, TEXT: 0}
        self.sides: tuple[int, ...] = ()

    def _takes(self, name: str) -> bool:
        has_patch = any(self.patches.get(f"{name}_{kind}") for kind in ("patch", "output_patch"))
        return has_patch or bool(self.replace.get(name)) or OVERRIDE in self.options

    def start(self, x: Tensor) -> Tensor:
        """Begin a forward."""
        self.sides = tuple(x.shape[-2:])
        # Merging and tiling of tokens work on the attention whose tokens are as many as this size has positions: in
        # core's U-Nets the largest one, which here stands behind the first halving.
        attends = self.config.add_self_attention
        halvings = attends.index(True) if True in attends else 0
        self.options["original_shape"] = [len(x), self.config.latent_channels, *(n >> halvings for n in self.sides)]
        self.options["block"], self.options["transformer_index"] = self.block, 0
        return self._each("input_block_patch", x)

    def enter(self, place: Place) -> None:
        """Begin the next block."""
        before, number = self.block
        if place == "middle" == before:
            return
        self.block = (place, number + 1 if place == before else 0)
        self.options["block"] = self.block
        self.counts = dict.fromkeys(self.counts, 0)

    def leave(self, x: Tensor) -> Tensor:
        """Run the patches on what an input block made."""
        return self._each("input_block_patch", x)

    def leave_skip(self, x: Tensor) -> Tensor:
        """Run the patches on what goes on from an input block."""
        return self._each("input_block_patch_after_skip", x)

    def join(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Run the patches on both sides of a skip."""
        for patch in self.patches.get("output_block_patch", []):
            x, skip = patch(x, skip, self.options)
        return tuple(t.contiguous(memory_format=torch.channels_last) for t in (x, skip))

    def finish(self, x: Tensor) -> Tensor:
        """Give back the sides that a patch took before the first skip was kept."""
        if tuple(x.shape[-2:]) == self.sides:
            return x
        # What such patches look at is the other side's shape, which here holds no values.
        return self.join(x, x.new_zeros(1).expand(*x.shape[:2], *self.sides))[0]

    def attend(self, attention: Attention, tokens: Tensor, sides: tuple[int, int], *, is_text: bool) -> Tensor:
        """Run an attention with the patches on its inputs, on itself and on its result."""
        name = TEXT if is_text else POSITIONS
        extra = self._describe(attention, tokens, sides)
        query, key, value, mask = tokens, tokens, tokens, None
        if is_text:
            key = value = each_frame(self.context, len(tokens))
            mask = None if self.mask is None else each_frame(self.mask, len(tokens))
        for patch in self.patches.get(f"{name}_patch", []):
            query, key, value = patch(query, key, value, extra)
        query, key, value = attention.project_each(query, key, value)
        replace = self.replace.get(name, {})
        place = (*self.block, self.counts[name])
        place = place if place in replace else self.block
        self.counts[name] += 1
        if place in replace:
            out = replace[place](query, key, value, extra)
        else:
            out = self._run(query, key, value, attention.heads, mask)
        out = attention.output_layer(out)
        for patch in self.patches.get(f"{name}_output_patch", []):
            out = patch(out, extra)
        return out

    def _describe(self, attention: Attention, tokens: Tensor, sides: tuple[int, int]) -> dict[str, Any]:
        known = {key: value for key, value in self.options.items() if key not in ("patches", "patches_replace")}
        channels = attention.output_layer.in_features
        described = {"n_heads": attention.heads, "dim_head": channels // attention.heads, "attn_precision": None}
        return {**known, **described, "activations_shape": [len(tokens), tokens.shape[-1], *sides]}

    def _run(self, query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        if len(key) != len(query):
            # A patch has cut the queries into tiles; keys and values are cut in their own order, as core's are.
            key, value = (t.reshape(len(query), -1, t.shape[-1]) for t in (key, value))
        if mask is not None and mask.shape != key.shape[:2]:
            mask = None
        if OVERRIDE not in self.options:
            return attend(query, key, value, heads, mask)
        mask = None if mask is None else mask[:, None, None, :]
        return self.run_attention(query, key, value, heads, mask=mask, transformer_options=self.options)

    def _each(self, name: str, x: Tensor) -> Tensor:
        patches = self.patches.get(name, []) if self.block[0] == "input" else []
        for patch in patches:
            x = patch(x, self.options)
        return x.contiguous(memory_format=torch.channels_last) if patches else x


def each_frame(rows: Tensor, samples: int) -> Tensor:
    """Repeat what is given per row for the neighbouring samples of the row: ``[R, ...]`` to ``[samples, ...]``."""
    return rows.repeat_interleave(samples // len(rows), dim=0)


def fill_null_rows(context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Repeat the token of rows that have only one, which changes no attention, as patches are given no mask.

    Args:
        context: ``[R, L, D]``.
        mask: ``[R, L]``, non-zero where a token is valid.

    Returns:
        ``[R, L', D]`` and ``[R, L']`` booleans, None where every token is valid.
    """
    context, valid = cut_context(context, mask)
    if valid is None:
        return context, None
    single = valid.sum(dim=1) == 1
    tokens = context[torch.arange(len(context), device=context.device), valid.int().argmax(dim=1)]
    context = torch.where(single[:, None, None], tokens[:, None], context)
    valid = valid | single[:, None]
    return context, None if bool(valid.all()) else valid


def unread(options: Mapping[str, Any], conditions: Mapping[str, list[dict[str, Any]]] | None = None) -> list[str]:
    """Name what was hung on a run and is read by nobody, in words for a user.

    Args:
        options: core's transformer options of the run.
        conditions: the entries of each branch.
    """
    names = [f"{name} patch" for name, patches in options.get("patches", {}).items() if patches]
    names = [name for name in names if name.removesuffix(" patch") not in READ_PATCHES]
    replace = options.get("patches_replace", {})
    names += [f"{name} replacement" for name, places in replace.items() if places and name not in (POSITIONS, TEXT)]
    names += [name.replace("_", " ") for name in UNREAD_OPTIONS if name in options]
    entries = [entry for branch in (conditions or {}).values() for entry in branch]
    kinds = {"control": "ControlNet", "gligen": "GLIGEN boxes"}
    return names + [words for key, words in kinds.items() if any(entry.get(key) is not None for entry in entries)]


class Notice:
    """Says once in a run what nobody reads; guidance may hang something on single calls of the network only.

    Args:
        say: takes a sentence.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, set()

    def __call__(self, names: list[str]) -> None:
        """Say those of the names that were not said before."""
        fresh = [name for name in names if name not in self._said]
        self._said.update(fresh)
        if fresh:
            self._say(f"FusionFrames U-Nets do not read: {', '.join(fresh)}; the result is the same without")
