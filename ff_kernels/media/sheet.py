"""Contact sheets: all frames of a clip on one picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import InputError
from .pictures import to_uint8

TILE_MIN_PX = 128
GAP_PX = 4


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
