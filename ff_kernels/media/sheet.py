"""Contact sheets: all frames of a clip on one picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import InputError
from .pictures import to_uint8

TILE_MIN_PX = 128
GAP_PX = 4
# About 400 MB as RGB; and the longest side that a format holds.
MAX_SHEET_PX = 2**27
MAX_SIDE_PX = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}


def sheet_size(
    count: int, height: int, width: int, columns: int | None = None, *, label_px: int = 20, suffix: str = ".png"
) -> tuple[int, int]:
    """Return width and height in pixels of the sheet of ``count`` frames.

    Args:
        count: frames.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        columns: as in ``contact_sheet``.
        label_px: height of a label, 0 without.
        suffix: of the file it is written to.

    Raises:
        InputError: if the sheet would have over ``MAX_SHEET_PX`` pixels, or a side that the format cannot hold.
    """
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    scale = math.ceil(TILE_MIN_PX / width)
    size = (columns * (width * scale + GAP_PX) + GAP_PX,
            math.ceil(count / columns) * (height * scale + label_px + GAP_PX) + GAP_PX)  # fmt: skip
    longest = MAX_SIDE_PX.get(suffix.lower(), MAX_SHEET_PX)
    if math.prod(size) > MAX_SHEET_PX or max(size) > longest:
        raise InputError(
            f"expected a contact sheet of up to {MAX_SHEET_PX:,} pixels with sides up to {longest:,}, got {size[0]:,} "
            f"x {size[1]:,} for {count} frames of {width} x {height}: take fewer or smaller frames"
        )
    return size


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
        InputError: if ``columns``, ``label_px``, the number of ``times`` or a pixel is outside its range, or the sheet
            would have over ``MAX_SHEET_PX`` pixels.
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
    scale = math.ceil(TILE_MIN_PX / W)
    tile_w, tile_h = W * scale, H * scale
    label_h = 0 if times is None else label_px
    size = sheet_size(F, H, W, columns, label_px=label_h)
    step_x, step_y = tile_w + GAP_PX, tile_h + label_h + GAP_PX
    sheet = Image.new("RGB", size, "white")
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
