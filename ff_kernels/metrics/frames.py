"""Measures of one clip whose frames are in memory, taken a few frames at a time: what a graph of nodes asks for."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..media.clips import CHUNK_FRAMES
from .consistency import FIRST_FRAME, TemporalConsistency
from .evaluation import UNITS, Progress, measure_pair
from .fidelity import check_pair
from .lpips import Distance
from .tables import Measure, measure_frames


def compare_frames(
    reference: Tensor, frames: Tensor, distance: Distance | None = None, *, progress: Progress | None = None
) -> list[Measure]:
    """Return PSNR, SSIM, MSE and, with a network, LPIPS of a clip against its reference, with their curves.

    Beside the clips, memory holds what eight frames need.

    Args:
        reference: ``[T, 3, H, W]`` in 0..1.
        frames: ``[T, 3, H, W]`` in 0..1.
        distance: from ``lpips.load_lpips``.
        progress: told after each chunk: frames done, frames in all.

    Raises:
        ShapeError: if a shape is wrong, the shapes differ or frames are too small.
        InputError: if a clip has another type or range of pixels.
    """
    reference, frames = check_pair(reference, frames)
    curves: dict[str, list[Tensor]] = {}
    for start, stop in _chunks(len(frames), progress):
        for name, values in measure_pair(reference[start:stop], frames[start:stop], distance).items():
            curves.setdefault(name, []).append(values)
    return [measure_frames(name, UNITS.get(name, ""), torch.cat(parts)) for name, parts in curves.items()]


def measure_consistency(
    frames: Tensor, distance: Distance | None = None, *, progress: Progress | None = None
) -> list[Measure]:
    """Return every measure of ``consistency`` of a clip, with their curves.

    Args:
        frames: ``[T, 3, H, W]`` in 0..1, T 3 or more.
        distance: LPIPS for the neighbour LPIPS.
        progress: as in ``compare_frames``.

    Raises:
        ShapeError: if the shape is another or there are fewer than three frames.
        InputError: if a pixel is outside 0..1.
    """
    consistency = TemporalConsistency(distance)
    for start, stop in _chunks(len(frames), progress):
        consistency.add(frames[start:stop])
    return [measure_frames(name, "", curve, FIRST_FRAME) for name, curve in consistency.curves().items()]


def _chunks(count: int, progress: Progress | None) -> Iterator[tuple[int, int]]:
    for start in range(0, count, CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, count)
        yield start, stop
        if progress is not None:
            progress(stop, count)
