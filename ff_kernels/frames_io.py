"""Frames in, files out and back: video, GIF, PNG sequence, contact sheet and still image.

F frames, H and W sides in pixels; pixels are RGB, floating point in 0..1 or ``uint8`` in 0..255. A file is
written under a hidden name in its own folder and renamed when complete, so a run that fails or is interrupted
leaves nothing half-written.
"""

import errno
import itertools
import math
import os
import secrets
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import Interpolation
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from .errors import FusionFramesError, InputError, OutputError, ShapeError

SUFFIXES = (".mp4", ".webm", ".gif", ".png")

# The limit of the H.264 and VP9 encoders.
MAX_SIDE_PX = 16_384
# A larger image is taken for a decompression bomb.
MAX_IMAGE_PX = 2**26
MIN_FPS = 0.1
# GIF viewers show a frame that asks for less than 20 ms for 100 ms.
MAX_FPS = {".mp4": 240, ".webm": 240, ".gif": 50}

TILE_MIN_PX = 128
GAP_PX = 4

# What Pillow's decoders raise for damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, LookupError, struct.error)
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
        if not path.parent.is_dir():
            raise InputError(f"expected the folder '{path.parent}' for '{path.name}', found none: create it")
    except OSError as error:
        raise InputError(f"cannot use the output '{path}': {_reason(error)}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"expected a writable folder, got '{path.parent}': choose another for '{path.name}'")
    if suffix in _VIDEO_FORMATS:
        _require_encoder(suffix)
    return path


def to_uint8(frames: Tensor, rounding: Literal["nearest", "truncate"] = "nearest", *, start: int = 0) -> Tensor:
    """Pixels as bytes; values outside 0..1 are clamped, ``uint8`` passes through.

    Args:
        frames: ``[F, H, W, 3]``, any floating point type in 0..1, or ``uint8``.
        rounding: ``"nearest"``, or ``"truncate"`` for the bytes that the releases write.
        start: number of the first of these frames in its clip, for the error.

    Returns:
        ``[F, H, W, 3]`` ``uint8`` on the device of ``frames``.

    Raises:
        ShapeError: if ``frames`` has another shape or no pixels.
        InputError: if the type or ``rounding`` is another, or a value is NaN or infinite.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ShapeError(f"expected frames [F, H, W, 3] with pixels, got {list(frames.shape)}: reshape them")
    if rounding not in ("nearest", "truncate"):
        raise InputError(f"expected rounding 'nearest' or 'truncate', got '{rounding}': choose one of them")
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        raise InputError(f"expected floating point or uint8 frames, got {frames.dtype}: convert them first")
    finite = torch.isfinite(frames).flatten(1).all(dim=1)  # [F]
    if not finite.all():
        first = start + int(finite.logical_not().nonzero()[0])
        raise InputError(f"expected finite pixels, got NaN or infinity in frame {first}: sample in float32")
    scaled = frames.detach().float().clamp(0, 1) * 255
    # Release 1.0 and 1.1: torchvision's ToPILImage drops the fraction, which darkens a frame by half a level.
    return (scaled.round() if rounding == "nearest" else scaled).to(torch.uint8)


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
    with _atomic_paths(targets) as temporaries:
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


def contact_sheet(
    frames: Tensor, columns: int | None = None, times: Sequence[float] | None = None, *, label_px: int = 20
) -> Image.Image:
    """All frames on one RGB image, row by row with thin gaps, each with its time below.

    Frames narrower than 128 pixels are enlarged by a whole factor, so each pixel stays a square.

    Args:
        frames: ``[F, H, W, 3]``, floating point in 0..1 or ``uint8``.
        columns: frames per row, 1 or more; by default the grid is as square as F allows.
        times: F times in seconds; None leaves the labels out.
        label_px: height of a label in pixels, 12..40.

    Raises:
        ShapeError: if ``frames`` has another shape or no pixels.
        InputError: if ``columns``, ``label_px``, the number of ``times`` or a pixel is outside its range.
    """
    pixels = to_uint8(frames).cpu().numpy()
    F, H, W, _ = pixels.shape
    if columns is not None and columns < 1:
        raise InputError(f"expected 1 or more columns on the sheet, got {columns}: give a positive number")
    if times is not None and len(times) != F:
        raise InputError(f"expected {F} times for {F} frames, got {len(times)}: give one time per frame")
    if not 12 <= label_px <= 40:
        raise InputError(f"expected a label height of 12..40 pixels, got {label_px}: change the height")

    columns = min(columns or math.ceil(math.sqrt(F)), F)
    rows = math.ceil(F / columns)
    scale = math.ceil(TILE_MIN_PX / W)
    tile_w, tile_h = W * scale, H * scale
    label_h = 0 if times is None else label_px
    step_x, step_y = tile_w + GAP_PX, tile_h + label_h + GAP_PX
    sheet = Image.new("RGB", (columns * step_x + GAP_PX, rows * step_y + GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(label_px * 0.7)
    for index, frame in enumerate(pixels):
        left = GAP_PX + index % columns * step_x
        top = GAP_PX + index // columns * step_y
        tile = Image.fromarray(frame).resize((tile_w, tile_h), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        if times is not None:
            centre = (left + tile_w / 2, top + tile_h + label_h / 2)
            draw.text(centre, f"{times[index]:.2f} s", fill="black", font=font, anchor="mm")
    return sheet


def write_image(image: Image.Image, path: str | Path) -> None:
    """Write one still image, complete or not at all.

    Args:
        image: any Pillow image that the format can hold.
        path: output file; its suffix selects a format that Pillow writes, such as ``.png`` or ``.jpg``.

    Raises:
        InputError: if Pillow writes no format of that suffix.
        OutputError: if writing fails; no file of this call is left.
    """
    path = Path(path)
    format_name = Image.registered_extensions().get(path.suffix.lower())
    if format_name not in Image.SAVE:
        raise InputError(f"expected an image name such as 'sheet.png', got '{path}': change its suffix")
    with atomic_path(path) as temporary:
        image.save(temporary, format=format_name)


def read_image(path: str | Path) -> Tensor:
    """Pixels of a still image as it is meant to be seen: turned by its EXIF tag, transparency over white.

    Args:
        path: any image that Pillow opens, 8 bits per channel or 16 bit grey; of an animation the first frame.

    Returns:
        ``[H, W, 3]`` float32 RGB in 0..1.

    Raises:
        InputError: if the file is missing, unreadable, no image, damaged or has over ``MAX_IMAGE_PX`` pixels.
    """
    path = Path(path)
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise InputError(f"expected an image at '{path}', found {found}: check the path")
        with warnings.catch_warnings():
            # Pillow warns of large images, refused below, and of damaged tags that the pixels do not need.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.width * image.height > MAX_IMAGE_PX:
                    raise Image.DecompressionBombError
                rgb = _rgb(ImageOps.exif_transpose(image), path)
    except Image.DecompressionBombError as error:
        raise InputError(f"expected up to {MAX_IMAGE_PX} pixels in '{path}', got more: reduce it") from error
    except FusionFramesError:
        raise
    except _DECODE_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"cannot read the image '{path}': {_reason(error)}") from error
        raise InputError(
            f"expected an image such as PNG or JPEG at '{path}', found a damaged or other file: save it again"
        ) from error
    return torch.from_numpy(np.ascontiguousarray(rgb))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Temporary path beside ``path``, renamed to ``path`` when the block ends without an exception.

    The temporary name is hidden and keeps the suffix. On any exception, ``KeyboardInterrupt`` included, the
    file is removed. The block must write it and should read nothing else: each ``OSError`` in the block
    counts as a failure to write ``path``.

    Raises:
        OutputError: instead of an ``OSError`` from the block or from renaming.
    """
    with _atomic_paths([Path(path)]) as (temporary,):
        yield temporary


@contextmanager
def _atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    token = secrets.token_hex(6)
    temporaries = [path.with_name(f".ff-{token}-{i}{path.suffix}") for i, path in enumerate(paths)]
    renaming = False
    try:
        yield temporaries
        for temporary in temporaries:
            temporary.stat()  # a block that wrote nothing fails here, before a target is replaced
        renaming = True
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    except BaseException as error:
        for temporary, path in zip(temporaries, paths, strict=True):
            with suppress(OSError):
                # All existed before the first rename, so one that has gone is now `path`. A list kept by the
                # loop would miss a rename that an interrupt follows at once.
                if renaming and not temporary.exists():
                    path.unlink()
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, FusionFramesError):
            raise OutputError(f"could not write '{paths[0]}': {_reason(error)}") from error
        raise


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the device; free space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "permission denied; change its permissions or choose another folder"
    # An OSError without a number is Pillow's: "cannot write mode RGBA as JPEG".
    text = error.strerror or str(error)
    return f"{text[:1].lower()}{text[1:]}; check the name and the device"


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


def _rgb(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode[0] in "IF":
        # 16 bit grey: `convert("RGB")` would clip it at 255.
        grey = np.asarray(image).astype(np.float32) / 65535
        if image.mode == "F" or grey.min() < 0 or grey.max() > 1:
            raise InputError(f"expected 8 or 16 bits per channel in '{path}', got 32: convert the image first")
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
        alpha = rgba[..., 3:]
        return rgba[..., :3] * alpha + (1 - alpha)
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255
