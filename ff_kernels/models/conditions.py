"""What a U-Net is told besides its latents, worked out once per run by ``prepare`` and read at every step.

N samples are R rows of ``frames_per_row`` neighbouring samples each: a row is one prompt in one guidance branch
(ops/EXACTNESS.md, "Once per run"). Temporal layers see the N samples as clips of ``clip_length`` samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .hooks import NO_HOOKS, Hooks

Rows = Literal["time", "position", "both"]


@dataclass(frozen=True)
class Conditions:
    """Tables of one run.

    Attributes:
        modulations: per norm, ``[S or 1, rows, 2C]`` scale and shift; S steps. Rows are R for a norm told the
            time, the positions for one told the frame position, N for one told both; empty where unused.
        keys_values: per cross-attention, keys and values ``[A, L, C]`` of the text of the first A rows; the others
            have one valid token each.
        constants: per cross-attention, ``[R - A, C]``: what the other rows get from it. The softmax over one token
            is 1, whatever the query (ops/EXACTNESS.md, "Null branch is a constant").
        key_mask: ``[A, L]`` booleans, or None where every row uses all L tokens.
        samples: N.
        clip_length: samples of one clip (keyframes) or gaps of one clip (interpolation).
        is_temporal: False in the image mode of release 1.1, where temporal blocks are skipped.
        mixing: how many of the N samples, from the first on, mix over time; None for all (release 1.1 interpolation).
        merge: None, or ``[mixing]`` factors on the temporal merges of those samples.
    """

    modulations: tuple[Tensor | None, ...]
    keys_values: tuple[tuple[Tensor, Tensor], ...]
    constants: tuple[Tensor, ...]
    key_mask: Tensor | None
    samples: int
    clip_length: int
    is_temporal: bool = True
    mixing: int | None = None
    merge: Tensor | None = None

    def modulation(self, slot: int, step: int) -> Tensor:
        """Return the rows of the norm in ``slot`` at ``step``."""
        table = self.modulations[slot]
        return table[min(step, table.shape[0] - 1)]

    def rows_of(self, step: int) -> list[Tensor]:
        """Return the rows at ``step`` of every table that differs from step to step."""
        return [table[step] for table in self.modulations if table is not None and len(table) > 1]

    def with_rows(self, rows: Sequence[Tensor]) -> "Conditions":
        """Return the tables of a single step whose rows are ``rows``, in the order of ``rows_of``."""
        left = iter(rows)
        tables = (t if t is None or len(t) == 1 else next(left)[None] for t in self.modulations)
        return replace(self, modulations=tuple(tables))

    def attending(self, slot: int) -> int:
        """Return how many of the N samples, from the first on, attend to their text."""
        attending, constant = self.keys_values[slot][0].shape[0], self.constants[slot].shape[0]
        return self.samples * attending // (attending + constant)


@dataclass(frozen=True)
class Step:
    """One step of a run: the tables and which of their rows to read.

    Attributes:
        conditions: the tables.
        index: number of the step in them.
        first: which of the N samples the first one is where a block runs some of them at a time.
        hooks: where a host steps in.
    """

    conditions: Conditions
    index: int
    first: int = 0
    hooks: Hooks = NO_HOOKS


def cut_context(context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Drop the tokens that no row may attend to.

    Masked keys have weight zero, so leaving them out is exact. A row without any valid token attends to all of
    its tokens, which are zero, as in the releases.

    Args:
        context: ``[R, L, D]``.
        mask: ``[R, L]``, non-zero where a token is valid.

    Returns:
        ``[R, L', D]`` and ``[R, L']`` booleans, or None if every remaining token of every row is valid.
    """
    mask = mask.bool()
    mask = mask | ~mask.any(dim=1, keepdim=True)
    length = int(mask.any(dim=0).nonzero().max()) + 1
    context, mask = context[:, :length], mask[:, :length]
    return context, None if bool(mask.all()) else mask


def part_rows(context: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Part the rows that have to attend from those behind them with one valid token each, which need no softmax.

    Args:
        context: ``[R, L, D]`` of ``cut_context``.
        mask: ``[R, L]`` of ``cut_context``, or None.

    Returns:
        ``[A, L, D]`` up to the last row with more than one valid token, their mask ``[A, L]`` (None where every token
        is valid), and the one token ``[R - A, D]`` of each other row.
    """
    if mask is None:
        attending = len(context) if context.shape[1] > 1 else 0
        return context[:attending], None, context[attending:].flatten(0, 1)
    several = (mask.sum(dim=1) > 1).nonzero()
    attending = int(several.max()) + 1 if len(several) else 0
    rest, places = context[attending:], mask[attending:].int().argmax(dim=1)
    single = rest[torch.arange(len(rest), device=rest.device), places]
    mask = mask[:attending]
    return context[:attending], None if bool(mask.all()) else mask, single


def part_merge(merge: Tensor | None, clip_length: int) -> tuple[int | None, Tensor | None]:
    """Part the samples whose temporal merges are factored by 0, and so do nothing, from those before them.

    Args:
        merge: None, or ``[N]`` factors.
        clip_length: samples of a clip, which stay together.

    Returns:
        ``mixing`` and ``merge`` of ``Conditions``.
    """
    if merge is None:
        return None, None
    known = merge.cpu()
    clips = known.unflatten(0, (-1, clip_length)).any(dim=1).nonzero()
    mixing = (int(clips.max()) + 1) * clip_length if len(clips) else 0
    return mixing, None if bool((known[:mixing] == 1).all()) else merge[:mixing]


def combine_rows(time: Tensor, position: Tensor, frames_per_row: int) -> Tensor:
    """Add time vectors ``[S, R, E]`` and position vectors ``[P, E]`` for every sample: ``[S, N, E]``."""
    time = time.repeat_interleave(frames_per_row, dim=1)
    return time + position.repeat(time.shape[1] // position.shape[0], 1)


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Embed scalars: ``[...]`` to ``[..., width]`` float32, sines first, then cosines.

    Source: releases 1.0 and 1.1, class SinusoidalPosEmb (frequency divisor ``width / 2 - 1``).
    """
    half = width // 2
    step = torch.log(torch.tensor(10000.0)).item() / (half - 1)
    frequencies = torch.exp(torch.arange(half, device=values.device) * -step)
    angles = values[..., None].float() * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
