"""Latents to frames, a chunk at a time: as the releases split a clip, or with seams cross-faded."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..errors import InputError
from ..models.movq import MoVQ
from ..sampling.samplers import Stopped

# Up to so many pixels and frames more at once are faster: the calls of layers take longer than small pictures do, and
# torch has a slow convolution for a single one of few values (65 frames of 64x64 on one core: 1.03 to 0.71 s).
PIXELS_AT_ONCE, FRAMES_AT_ONCE = 32768, 8
# Frames that neighbouring chunks of a video decoder share where seams are cross-faded.
BLEND_FRAMES = 2


def chunk_sizes(frames: int) -> list[int]:
    """Return the frames per decoded chunk as the releases split them: ``frames // 4`` chunks of equal ceiling.

    15 frames become 5, 5, 5; 57 become eleven 5s and a 2; fewer than four frames stay whole.
    """
    size = -(-frames // max(1, frames // 4))
    return [min(size, frames - start) for start in range(0, frames, size)]


def frames_at_once(frames: int, size: tuple[int, int], looks_around: bool) -> int:
    """Return the frames to decode at once: few where frames do not look at each other, else the releases' chunk.

    One large frame at a time gives the same pixels in a fifth of the memory of the releases' chunks of five. Small ones
    go together, as many as ``FRAMES_AT_ONCE`` and ``PIXELS_AT_ONCE`` allow.

    Args:
        frames: of the clip.
        size: height and width in pixels.
        looks_around: whether frames that run together look at each other.
    """
    if looks_around:
        return chunk_sizes(frames)[0]
    return max(1, min(frames, FRAMES_AT_ONCE, PIXELS_AT_ONCE // (size[0] * size[1])))


def blend_overlap(frames: int, chunk: int | None = None) -> int:
    """Return how many frames mended chunks of a video decoder share: two, or fewer where a chunk is shorter."""
    size = chunk_sizes(frames)[0] if chunk is None else min(chunk, frames)
    return max(0, min(BLEND_FRAMES, size - 1))


def decode(
    movq: MoVQ, latents: Tensor, *, chunk: int | None = None, shared_map: bool = False, overlap: int = 0,
    should_stop: Callable[[int, int], bool | None] | None = None,
) -> Tensor:  # fmt: skip
    """Decode clips to frames, a chunk at a time.

    Args:
        movq: image or video MoVQ.
        latents: ``[T, 4, h, w]`` of one clip.
        chunk: frames per chunk; default ``frames_at_once``.
        shared_map: attention is modulated by frame 0 of the chunk, as release 1.1 does.
        overlap: frames that neighbouring chunks share; their pixels are cross-faded. 0 is the releases' way,
            which leaves a seam at every chunk of a video decoder.
        should_stop: called after every chunk with frames done and frames in all; True stops.

    Returns:
        ``[T, 3, 8h, 8w]`` pixels in 0..1 (times the decoder's own factor), clamped.

    Raises:
        InputError: if the overlap is not smaller than the chunk.
        Stopped: if ``should_stop`` asked for it.

    Source: releases 1.0 and 1.1, golden ``v10_pipeline``, ``v11_pipeline`` (``frames``).
    """
    chunks = decode_chunks(movq, latents, chunk=chunk, shared_map=shared_map, overlap=overlap, should_stop=should_stop)
    return join_chunks(chunks, len(latents))


def join_chunks(chunks: Iterable[Tensor], frames: int) -> Tensor:
    """Return the ``frames`` of chunks ``[k, ...]`` as one tensor, filled as they come: never two copies of a clip."""
    out, done = torch.empty(0), 0
    for chunk in chunks:
        if not done:
            out = chunk.new_empty(frames, *chunk.shape[1:])
        out[done : done + len(chunk)] = chunk
        done += len(chunk)
    return out


def decode_chunks(
    movq: MoVQ, latents: Tensor, *, chunk: int | None = None, shared_map: bool = False, overlap: int = 0,
    should_stop: Callable[[int, int], bool | None] | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """Decode one clip a chunk at a time, yielding frames ``[k, 3, 8h, 8w]`` in their order as soon as they are final.

    Arguments, values and errors are those of ``decode``; no more than two chunks are alive at one time.
    """
    total = latents.shape[0]
    config = movq.config
    pixels = tuple(side * config.factor for side in latents.shape[-2:])
    size = frames_at_once(total, pixels, config.is_video or shared_map) if chunk is None else min(max(chunk, 1), total)
    if not 0 <= overlap < max(size, 1):
        raise InputError(f"expected an overlap of 0 to {size - 1} frames for chunks of {size}, got {overlap}: lower it")
    tail: Tensor | None = None
    for start, stop in _spans(total, size, overlap):
        part = latents[start:stop].contiguous(memory_format=torch.channels_last)
        pixels = movq.decode(part, shared_map=shared_map).add_(1).div_(2).clamp_(0, 1)
        if tail is not None:
            ramp = torch.linspace(0, 1, overlap + 2, device=pixels.device, dtype=pixels.dtype)[1:-1, None, None, None]
            pixels[:overlap] = torch.lerp(tail, pixels[:overlap], ramp)
        final = len(pixels) if stop == total else len(pixels) - overlap
        tail = pixels[final:].clone() if overlap else None
        yield pixels[:final]
        if should_stop is not None and should_stop(stop, total):
            raise Stopped(f"stopped after frame {stop} of {total}")


def _spans(total: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    start = 0
    while True:
        stop = min(start + size, total)
        yield start, stop
        if stop == total:
            return
        start = stop - overlap
