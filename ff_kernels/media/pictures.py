"""Still pictures: pixels as bytes, images in and out, and the fit to a clip's size, as released or mended.

Pixels are RGB, floating point in 0..1 or ``uint8`` in 0..255.
"""

import struct
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import FusionFramesError, InputError, ShapeError
from ..files import atomic_path, reason_of

# A larger image is taken for a decompression bomb.
MAX_IMAGE_PX = 2**26

# What Pillow's decoders raise for damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, LookupError, struct.error)


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
            raise InputError(f"cannot read the image '{path}': {reason_of(error)}") from error
        raise InputError(
            f"expected an image such as PNG or JPEG at '{path}', found a damaged or other file: save it again"
        ) from error
    return torch.from_numpy(np.ascontiguousarray(rgb))


def fit_as_released(picture: Tensor, width: int, height: int) -> Tensor:
    """Reduce and centre-crop a picture exactly as release 1.1 does.

    A picture smaller than the clip is not enlarged (models/RELEASES.md, "Small picture lies on black").

    Args:
        picture: ``[H, W, 3]`` in 0..1.
        width: pixels wanted.
        height: pixels wanted.

    Returns:
        ``[height, width, 3]`` in 0..1, of 8-bit values.
    """
    # Release 1.1: 8-bit values by truncation, Pillow's default filter.
    image = Image.fromarray(to_uint8(picture[None], rounding="truncate")[0].numpy())
    reduce = max(1, min(image.width / width, image.height / height))
    image = image.resize((round(image.width / reduce), round(image.height / reduce)))
    left, top = (image.width - width) / 2, (image.height - height) / 2
    image = image.crop((left, top, (image.width + width) / 2, (image.height + height) / 2))
    return torch.from_numpy(np.array(image)).float() / 255


def fit_covering(picture: Tensor, width: int, height: int) -> Tensor:
    """Scale a picture up or down until it covers the clip and crop the centre: no black bars, no 8-bit steps.

    Arguments and result as in ``fit_as_released``, with float precision.
    """
    from kornia.geometry.transform import resize

    rows, columns = picture.shape[:2]
    scale = max(width / columns, height / rows)
    size = (max(height, round(rows * scale)), max(width, round(columns * scale)))
    image = picture.permute(2, 0, 1)[None].float()
    if size != (rows, columns):
        image = resize(image, size, interpolation="bicubic", antialias=scale < 1).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return image[0, :, top : top + height, left : left + width].permute(1, 2, 0)


def to_rgb(picture: Tensor, name: str = "picture") -> Tensor:
    """Return ``[H, W, 3]`` in 0..1 of a picture with one (grey), two (grey, alpha), three or four (alpha) channels.

    What is transparent lies over white, as in ``read_image``.

    Args:
        picture: ``[H, W, C]``.
        name: what to call it in an error.

    Raises:
        InputError: if a pixel is no number.
    """
    colours = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1].expand(*picture.shape[:-1], 3)
    if not torch.isfinite(picture).all():
        raise InputError(f"{name} expected numbers, got NaN or infinite pixels: run what made it again")
    colours = colours.float().clamp(0, 1)
    if picture.shape[-1] not in (2, 4):
        return colours
    alpha = picture[..., -1:].float().clamp(0, 1)
    return colours * alpha + (1 - alpha)


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
