"""Masked-frame interpolation: known frames stay, missing ones are filled from the gaps between them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError, ShapeError
from ..sampling.gaps import FRAMES_PER_GAP, frames_after

# Interpolates ``[B, T, C, h, w]`` known frames by a number of passes: ``[B, frames_after(T, passes), C, h, w]``.
Fill = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class MissingRun:
    """Neighbouring gaps of equal length, which are filled together so that the network sees them as one clip.

    Attributes:
        known: positions of the known frames around and between the gaps, ascending.
        inner: missing frames of each gap.
        passes: interpolation passes that make at least ``inner`` frames per gap.
    """

    known: tuple[int, ...]
    inner: int
    passes: int

    @property
    def frames(self) -> int:
        """Frames that the passes make of the known ones."""
        return frames_after(len(self.known), self.passes)

    def picks(self) -> list[tuple[int, int]]:
        """Return (position in the clip, frame of the filled run) of every missing frame, nearest in time."""
        spacing = (FRAMES_PER_GAP + 1) ** self.passes
        return [
            (start + j, gap * spacing + _nearest(j * spacing, self.inner + 1))
            for gap, start in enumerate(self.known[:-1])
            for j in range(1, self.inner + 1)
        ]


def _nearest(numerator: int, denominator: int) -> int:
    """Divide and round half up, in integers so that ties never depend on floating point."""
    return (2 * numerator + denominator) // (2 * denominator)


def passes_for(inner: int) -> int:
    """Return the fewest passes that make at least ``inner`` frames of a gap: 1 for up to 3, 2 for up to 15, .."""
    passes = 1
    while (FRAMES_PER_GAP + 1) ** passes - 1 < inner:
        passes += 1
    return passes


def find_missing_runs(missing: Tensor) -> list[MissingRun]:
    """Group the gaps of a clip.

    Args:
        missing: ``[T]`` booleans, True where a frame is missing.

    Raises:
        InputError: if nothing is missing, fewer than two frames are known, or the first or last frame is missing.
    """
    flags = missing.tolist()
    known = [i for i, flag in enumerate(flags) if not flag]
    if len(known) == len(flags):
        raise InputError(
            "masked interpolation expected missing frames, got a mask that marks none: set the mask to 1 where a "
            "frame is to be made"
        )
    if len(known) < 2 or flags[0] or flags[-1]:
        raise InputError(
            f"masked interpolation expected the first and the last frame to be known, got {len(known)} known frames "
            f"({known[:6]}) of {len(flags)}: gaps need a known frame on both sides, so trim the ends or supply them"
        )
    runs: list[MissingRun] = []
    for left, right in itertools.pairwise(known):
        inner = right - left - 1
        if not inner:
            continue
        last = runs[-1] if runs else None
        if last and last.inner == inner and last.known[-1] == left:
            runs[-1] = MissingRun((*last.known, right), inner, last.passes)
        else:
            runs.append(MissingRun((left, right), inner, passes_for(inner)))
    return runs


def fill_missing(latents: Tensor, missing: Tensor, fill: Fill) -> Tensor:
    """Fill the missing frames of clips; known frames pass through bit for bit.

    A gap may have any length: the fewest passes that make enough frames are run, and of what they make the frames
    nearest in time are kept.

    Args:
        latents: ``[B, T, C, h, w]``; what stands at missing frames is not read.
        missing: ``[T]`` booleans, True where a frame is missing.
        fill: interpolation of known frames, for example ``stages.interpolate`` once per pass.

    Returns:
        ``[B, T, C, h, w]``.

    Raises:
        ShapeError: if the mask does not have one entry per frame.
        InputError: see ``find_missing_runs``.
    """
    if latents.ndim != 5 or missing.shape != latents.shape[1:2]:
        raise ShapeError(
            f"expected one mask entry for each of the {latents.shape[1]} frames of {list(latents.shape)}, got a mask "
            f"of {list(missing.shape)}: make the mask as long as the clip"
        )
    out = latents.clone()
    for run in find_missing_runs(missing):
        made = fill(latents[:, list(run.known)], run.passes)
        places, frames = zip(*run.picks(), strict=True)
        out[:, list(places)] = made[:, list(frames)].to(out)
    return out


def frame_mask(mask: Tensor, frames: int) -> Tensor:
    """Return ``[frames]`` booleans of a mask given per pixel: a frame is missing where most of it is masked.

    Args:
        mask: 1 = missing; ``[T]``, ``[B, 1, T, h, w]``, or up to four axes of which the last two are the frame's and
            all others together count the frames, as hosts reshape them; one repeated for each of several clips is taken
            once.
        frames: T.

    Raises:
        ShapeError: if the mask has another number of frames.
    """
    if mask.ndim > 1:
        mask = mask.float().mean(dim=(-2, -1))
        mask = mask.reshape(-1, mask.shape[-1]).mean(dim=0) if mask.ndim == 3 else mask.reshape(-1)
    if mask.shape[0] > frames and mask.shape[0] % frames == 0:
        repeats = mask.reshape(-1, frames)
        mask = repeats[0] if bool((repeats == repeats[:1]).all()) else mask
    if mask.shape[0] != frames:
        raise ShapeError(
            f"expected a mask of {frames} frames, one for each frame of the clip, got {mask.shape[0]}: make the mask "
            "as long as the clip"
        )
    return mask > 0.5
