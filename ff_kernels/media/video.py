"""Frames to a video, a GIF or a sequence of PNG files.

F frames, H and W sides in pixels; pixels are RGB, floating point in 0..1 or ``uint8`` in 0..255.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation
from PIL import Image
from torch import Tensor

from ..errors import InputError, OutputError
from ..files import atomic_paths, reason_of
from .pictures import to_uint8

SUFFIXES = (".mp4", ".webm", ".gif", ".png")

# The limit of the H.264 and VP9 encoders.
MAX_SIDE_PX = 16_384
MIN_FPS = 0.1
# GIF viewers show a frame that asks for less than 20 ms for 100 ms.
MAX_FPS = {".mp4": 240, ".webm": 240, ".gif": 50}

_PALETTE_SAMPLES = 2**18
_COLOUR_BT709, _RANGE_LIMITED = 1, 1
_SCALING = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class _VideoFormat(NamedTuple):
    container: str
    encoder: str
    encoder_options: dict[str, str]
    container_options: dict[str, str]


_VIDEO_FORMATS = {
    # With its index in front an mp4 plays in a browser before it is loaded. Without mbtree=0 the same frames gave other
    # bytes, and other pictures, in up to 25 of 30 runs at 64x96 (x264 of PyAV 18.1); with it always the same.
    ".mp4": _VideoFormat("mp4", "libx264", {"crf": "16", "x264-params": "mbtree=0"}, {"movflags": "+faststart"}),
    # Unless the bit rate is 0, libvpx holds it near 256 kbit/s whatever crf asks for.
    ".webm": _VideoFormat("webm", "libvpx-vp9", {"crf": "20", "b": "0", "cpu-used": "4", "row-mt": "1"}, {}),
}


def check_output(path: str | Path) -> Path:
    """``path`` as a ``Path`` that ``write_frames`` can write, checked before any work starts.

    Args:
        path: file to be written; its suffix selects the format, see ``SUFFIXES``.

    Raises:
        InputError: if the suffix is unknown, the path is a folder, or its folder is missing or not writable.
        OutputError: if the installed PyAV has no encoder for the format.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        names = ", ".join(SUFFIXES)
        raise InputError(f"expected an output that ends in one of {names}, got '{path}': change its suffix")
    try:
        taken = next((name for name in (path, _numbered(path, 1)[0]) if name.is_dir()), None)
        if taken is not None:
            raise InputError(f"expected an output file, got the folder '{taken}': choose another name")
        folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
        if not folder.is_dir():
            raise InputError(f"expected the folder '{folder}' for '{path.name}', found none: create it")
    except OSError as error:
        raise InputError(f"cannot use the output '{path}': {reason_of(error)}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"expected a writable folder, got '{folder}': choose another for '{path.name}'")
    if suffix in _VIDEO_FORMATS:
        _require_encoder(suffix)
    return path


def write_frames(
    frames: Tensor | Iterable[Tensor], path: str | Path, fps: float, *, count: int | None = None
) -> list[Path]:
    """Files that were written, complete: one video or GIF, or one PNG per frame.

    Frames may come in chunks, each written before the next one is asked for; only a GIF, whose colours are chosen from
    the whole clip, is collected first, as bytes.

    ``out.png`` becomes ``out_0000.png``, ``out_0001.png`` and so on. A file of the same name is replaced.
    Video is 4:2:0, so an odd side gains one repeated row or column. GIF time has steps of 10 ms, rounded so
    that the clip keeps its length; equal neighbouring frames become one frame that lasts longer.

    Args:
        frames: ``[F, H, W, 3]``, floating point in 0..1 or ``uint8``, or chunks of such frames in their order.
        path: output file; its suffix selects the format, see ``SUFFIXES``.
        fps: frames per second, 0.1..240 (GIF 0.1..50), may be fractional; PNG ignores it.
        count: F, where frames come in chunks.

    Raises:
        InputError: if ``path`` fails ``check_output``, ``fps``, a side or a pixel is outside its range, chunks come
            without ``count`` or do not hold as many frames.
        ShapeError: if ``frames`` has another shape or no pixels.
        OutputError: if encoding or writing fails; no file of this call is left.
    """
    path = check_output(path)
    suffix = path.suffix.lower()
    chunks = (frames,) if isinstance(frames, Tensor) else frames
    count = len(frames) if isinstance(frames, Tensor) else count
    if count is None:
        raise InputError("expected the count of frames that come in chunks, got none: pass count")
    pixels = _one_by_one(chunks, count)
    targets = _numbered(path, count) if suffix == ".png" else [path]
    if suffix != ".png":
        _check_rate(fps, suffix)
    with atomic_paths(targets) as temporaries:
        if suffix == ".png":
            for frame, temporary in zip(pixels, temporaries, strict=True):
                Image.fromarray(frame).save(temporary, format="PNG")
        elif suffix == ".gif":
            _write_gif(np.stack(list(pixels)), temporaries[0], fps)
        else:
            _write_video(pixels, temporaries[0], fps, suffix)
    return targets


def _one_by_one(chunks: Iterable[Tensor], count: int) -> Iterator[np.ndarray]:
    """Yield every frame as bytes ``[H, W, 3]``.

    Raises:
        InputError: if there are not ``count`` frames.
    """
    found = 0
    for chunk in chunks:
        pixels = to_uint8(chunk, start=found).cpu().numpy()
        del chunk
        found += len(pixels)
        if found > count:
            break
        yield from pixels
    if not found or found != count:
        raise InputError(f"expected {count} frames to write, got {found}: pass the number of frames in all chunks")


def _numbered(path: Path, count: int) -> list[Path]:
    digits = max(4, len(str(count - 1)))
    return [path.with_name(f"{path.stem}_{i:0{digits}}{path.suffix}") for i in range(count)]


def _require_encoder(suffix: str) -> None:
    encoder = _VIDEO_FORMATS[suffix].encoder
    try:
        av.Codec(encoder, "w")
    except (ValueError, FFmpegError) as error:
        raise OutputError(
            f"expected the encoder {encoder} for {suffix}, PyAV {av.__version__} has none: use another format"
        ) from error


def _check_rate(fps: float, suffix: str) -> None:
    if not MIN_FPS <= fps <= MAX_FPS[suffix]:
        limits = f"{MIN_FPS}..{MAX_FPS[suffix]}"
        raise InputError(f"expected {limits} frames per second for {suffix}, got {fps}: change the rate")


def _check_sides(H: int, W: int, suffix: str) -> None:
    if max(H, W) > MAX_SIDE_PX:
        raise InputError(f"expected sides up to {MAX_SIDE_PX} pixels for {suffix}, got {W} x {H}: write .png")


def _write_video(pixels: Iterator[np.ndarray], path: Path, fps: float, suffix: str) -> None:
    form, first = _VIDEO_FORMATS[suffix], next(pixels)
    H, W, _ = first.shape
    _check_sides(H, W, suffix)
    pad = ((0, H % 2), (0, W % 2), (0, 0))
    # 1001 keeps the broadcast rates such as 30000/1001 exact and fits the time base of every container.
    rate = Fraction(fps).limit_denominator(1001)
    try:
        with av.open(str(path), "w", format=form.container, options=form.container_options) as container:
            stream = container.add_stream(form.encoder, rate=rate, options=form.encoder_options)
            stream.width, stream.height, stream.pix_fmt = W + W % 2, H + H % 2, "yuv420p"
            # Players guess the colours of an untagged file from its height, and disagree.
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _COLOUR_BT709
            context.color_range = _RANGE_LIMITED
            for index, frame in enumerate(itertools.chain((first,), pixels)):
                rgb = av.VideoFrame.from_ndarray(np.pad(frame, pad, mode="edge"), format="rgb24")
                video_frame = rgb.reformat(
                    format="yuv420p",
                    dst_colorspace=_COLOUR_BT709,
                    dst_color_range=_RANGE_LIMITED,
                    interpolation=_SCALING,
                )
                video_frame.pts, video_frame.time_base = index, 1 / rate
                container.mux(stream.encode(video_frame))
            container.mux(stream.encode(None))
    except FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise OutputError(
            f"could not encode {W} x {H} frames as {suffix}: {error.strerror}; choose another format"
        ) from error


def _write_gif(pixels: np.ndarray, path: Path, fps: float) -> None:
    _check_sides(*pixels.shape[1:3], ".gif")
    ticks = np.rint(np.arange(len(pixels) + 1) * (100 / fps)).astype(int)
    durations_ms = (np.diff(ticks) * 10).tolist()
    samples = pixels.reshape(-1, 3)
    # An odd step: an even one can share a factor with the width and then meets a few columns only.
    samples = samples[:: math.ceil(len(samples) / _PALETTE_SAMPLES) | 1]
    # One palette for the clip: with one per frame a still background changes its shade from frame to frame.
    palette = Image.fromarray(samples[None]).quantize(256, Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in pixels]
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=durations_ms, loop=0)
