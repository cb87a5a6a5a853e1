"""Pictures on their way into the encoder: resized and cropped to the clip's size, as released or mended."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import InputError
from .frames_io import to_uint8


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

    Args:
        picture: ``[H, W, C]``.
        name: what to call it in an error.

    Raises:
        InputError: if a pixel is no number.
    """
    colours = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1].expand(*picture.shape[:-1], 3)
    if not torch.isfinite(colours).all():
        raise InputError(f"{name} expected numbers, got NaN or infinite pixels: run what made it again")
    return colours.float().clamp(0, 1)
