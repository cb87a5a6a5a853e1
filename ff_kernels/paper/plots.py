"""Results as pictures, drawn with Pillow: a bar per row, a line for the spread, a dot per seed."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..demo.world.scenes import FULL_FRAMES, MEDIUM_FRAMES
from ..media.pictures import write_image
from ..metrics.plots import tick_labels, ticks
from . import decoders, gaps, variants
from .tables import Records, values_of

_NAME_PX, _PANEL_PX, _GAP_PX, _ROW_PX, _HEAD_PX, _FOOT_PX = 150, 220, 40, 24, 28, 24
_TEXT_PX, _DOT_PX, _TICKS = 12, 2.2, 4
# Drawn larger and reduced, as Pillow's lines have no soft edges of their own.
SCALE = 2
INK, GRID, _BAR = "#303030", "#dddddd", "#8fb8d8"
# Table to panels: the number, its title and its unit.
PANELS: dict[str, tuple[tuple[str, str, float], ...]] = {
    variants.GROUP: (
        ("motion", "motion right, share", 1.0),
        ("all", "all five right, share", 1.0),
        ("warping", "warping error x 1000, less is better", 1e-3),
    ),
    gaps.GROUP: (
        (f"PSNR {MEDIUM_FRAMES}", "PSNR, 5 to 17 frames (dB)", 1.0),
        (f"PSNR {FULL_FRAMES}", "PSNR, 5 to 65 frames (dB)", 1.0),
        (f"SSIM {MEDIUM_FRAMES}", "SSIM, 17 frames", 1.0),
        (f"SSIM {FULL_FRAMES}", "SSIM, 65 frames", 1.0),
    ),
    decoders.GROUP: (
        ("PSNR", "PSNR (dB)", 1.0),
        ("SSIM", "SSIM", 1.0),
        ("flicker", "flicker x 1000, less is better", 1e-3),
    ),
}
ORDER: dict[str, tuple[str, ...]] = {
    variants.GROUP: (*variants.PAPER, variants.SHIPPED, variants.TRUTH),
    gaps.GROUP: (gaps.OURS_EQUAL_TIME, gaps.MASKED, gaps.OURS, gaps.BLENDING, gaps.SHIPPED, gaps.TRUTH),
    decoders.GROUP: (*(row.name for row in decoders.ROWS), decoders.TRUTH),
}


def draw_plots(done: Mapping[str, Records], folder: Path) -> list[Path]:
    """Write one picture per table of which there are records into a folder and return their paths."""
    paths = []
    for group, panels in PANELS.items():
        if group in done:
            paths.append(folder / f"{group}.png")
            shown = {name: done[group][name] for name in ORDER[group] if _is_drawn(done[group], name, panels)}
            write_image(plot_rows(shown, panels), paths[-1])
    return paths


def _is_drawn(records: Records, name: str, panels: Sequence[tuple[str, str, float]]) -> bool:
    return name in records and any(values_of(records, name, key) for key, *_ in panels)


def plot_rows(records: Records, panels: Sequence[tuple[str, str, float]]) -> Image.Image:
    """Return a picture with one panel per number and the rows downwards.

    Args:
        records: row to seed to record; a row without a number has no bar in its panel.
        panels: number, title and unit.
    """
    width = _NAME_PX + len(panels) * (_PANEL_PX + _GAP_PX)
    height = _HEAD_PX + _ROW_PX * len(records) + _FOOT_PX
    picture = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    draw = ImageDraw.Draw(picture)
    for place, name in enumerate(records):
        write_words(draw, (_NAME_PX - 8, _HEAD_PX + _ROW_PX * (place + 0.5)), name, "rm")
    for i, (key, title, unit) in enumerate(panels):
        left = _NAME_PX + i * (_PANEL_PX + _GAP_PX)
        write_words(draw, (left, _HEAD_PX / 2), title, "lm")
        values = [[value / unit for value in values_of(records, name, key)] for name in records]
        if not any(values):
            continue
        _draw_panel(draw, left, values)
    return picture.resize((width, height), Image.Resampling.BOX)


def axis_range(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the ends of an axis: from zero, or from near the smallest value where all are close together."""
    flat = [value for row in values for value in row]
    low, high = min(flat), max(flat)
    # Tenths of a decibel would not be seen on an axis from zero.
    start = 0.0 if low < 0.9 * high else low - 0.3 * (high - low or abs(high) or 1.0)
    return start, high + 0.05 * (high - start or 1.0)


def _draw_panel(draw: ImageDraw.ImageDraw, left: float, values: Sequence[Sequence[float]]) -> None:
    # A line for the spread may reach past the last dot.
    low, high = axis_range([[*row, statistics.fmean(row) + _deviation(row)] for row in values if row])
    bottom = _HEAD_PX + _ROW_PX * len(values)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * _PANEL_PX

    marks = ticks(low, high, _TICKS)
    for value, label in zip(marks, tick_labels(marks), strict=True):
        _line(draw, [(x(value), _HEAD_PX), (x(value), bottom)], GRID)
        write_words(draw, (x(value), bottom + 4), label, "ma")
    for place, row in enumerate(values):
        if not row:
            continue
        middle = _HEAD_PX + _ROW_PX * (place + 0.5)
        mean, deviation = statistics.fmean(row), _deviation(row)
        corners = (left, middle - 7, max(left, x(mean)), middle + 7)
        draw.rectangle([side * SCALE for side in corners], fill=_BAR)
        _line(draw, [(max(left, x(mean - deviation)), middle), (x(mean + deviation), middle)], INK)
        for value in row:
            dot = (x(value) - _DOT_PX, middle - _DOT_PX, x(value) + _DOT_PX, middle + _DOT_PX)
            draw.ellipse([side * SCALE for side in dot], fill=INK)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _line(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: str) -> None:
    draw.line([(x * SCALE, y * SCALE) for x, y in points], fill=colour, width=SCALE)


def write_words(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str) -> None:
    """Write words at a place in pixels of the finished picture."""
    font = ImageFont.load_default(_TEXT_PX * SCALE)
    draw.text((place[0] * SCALE, place[1] * SCALE), text, fill=INK, font=font, anchor=anchor)
