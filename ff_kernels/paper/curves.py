"""Training curves as pictures, drawn with Pillow: a number against steps and against processor time, a line per row."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from ..demo.world.scenes import MEDIUM_FRAMES
from ..media.pictures import write_image
from ..metrics.plots import tick_labels, ticks
from . import gaps, variants
from .plots import GRID, SCALE, write_words
from .tables import Records

_WIDTH_PX, _HEIGHT_PX, _LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 430, 270, 58, 14, 34, 50
_LEGEND_PX, _TICKS_X, _TICKS_Y = 22, 6, 5
_COLOURS = ("#e07b10", "#1f77b4", "#2e8b57", "#a0409a")
# Table to the number of its curve and the words of the axis.
CURVES = {
    variants.GROUP: ("motion", "motions right, share of held-out captions"),
    gaps.GROUP: (f"PSNR {MEDIUM_FRAMES}", f"PSNR of new frames, {MEDIUM_FRAMES} frames (dB)"),
}
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One row's curve: mean points, and the points of each seed."""

    mean: Points
    seeds: list[Points]


def draw_curves(done: Mapping[str, Records], folder: Path) -> list[Path]:
    """Write one picture per table that has curves into a folder and return their paths."""
    paths = []
    for group, (key, words) in CURVES.items():
        lines = {by: lines_of(done.get(group, {}), key, by) for by in ("steps", "minutes")}
        if lines["steps"]:
            paths.append(folder / f"{group}-curves.png")
            write_image(plot_lines(lines["steps"], lines["minutes"], words), paths[-1])
    return paths


def lines_of(records: Records, key: str, by: str) -> dict[str, Line]:
    """Return the curve of every row that has one, against "steps" or against "minutes" of one core."""
    out = {}
    for name, seeds in records.items():
        curves = []
        for record in seeds.values():
            each = 1.0 if by == "steps" else record.get("core_seconds_per_step", 0.0) / 60
            points = {int(step): numbers for step, numbers in record.get("curve", {}).items()}
            curves.append([(step * each, points[step][key]) for step in sorted(points)])
        curves = [curve for curve in curves if curve]
        if curves:
            mean = [tuple(map(statistics.fmean, zip(*at, strict=True))) for at in zip(*curves, strict=False)]
            out[name] = Line(mean, curves)
    return out


def plot_lines(by_steps: Mapping[str, Line], by_minutes: Mapping[str, Line], words: str) -> Image.Image:
    """Return a picture of two panels with one legend; thin lines are seeds, thick ones their mean."""
    size = (2 * _WIDTH_PX, _HEIGHT_PX + _LEGEND_PX)
    picture = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), "white")
    draw = ImageDraw.Draw(picture)
    for left, lines, axis in (
        (0, by_steps, "training steps"),
        (_WIDTH_PX, by_minutes, "training, minutes of one core"),
    ):
        _draw_panel(draw, left, lines, (axis, words))
    x = _LEFT_PX
    for name, colour in zip(by_steps, _COLOURS, strict=False):
        y = _HEIGHT_PX + _LEGEND_PX / 2
        draw.line([(x * SCALE, y * SCALE), ((x + 20) * SCALE, y * SCALE)], fill=colour, width=3 * SCALE)
        write_words(draw, (x + 26, y), name, "lm")
        x += (2 * _WIDTH_PX - _LEFT_PX) / len(by_steps)
    return picture.resize(size, Image.Resampling.BOX)


def _draw_panel(draw: ImageDraw.ImageDraw, left: float, lines: Mapping[str, Line], titles: Sequence[str]) -> None:
    points = [point for line in lines.values() for curve in line.seeds for point in curve]
    right = 1.03 * max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    room = 0.06 * (high - low) or 0.5
    low, high = low - room, high + room
    corners = (left + _LEFT_PX, _TOP_PX, left + _WIDTH_PX - _RIGHT_PX, _HEIGHT_PX - _BOTTOM_PX)

    def place(x: float, y: float) -> tuple[float, float]:
        across, down = x / (right or 1.0), (high - y) / (high - low)
        return (
            (corners[0] + across * (corners[2] - corners[0])) * SCALE,
            (corners[1] + down * (corners[3] - corners[1])) * SCALE,
        )

    marks = ticks(0.0, right or 1.0, _TICKS_X)
    for value, label in zip(marks, tick_labels(marks), strict=True):
        draw.line([place(value, low), place(value, high)], fill=GRID, width=SCALE)
        write_words(draw, (place(value, low)[0] / SCALE, corners[3] + 4), label, "ma")
    marks = ticks(low, high, _TICKS_Y)
    for value, label in zip(marks, tick_labels(marks), strict=True):
        draw.line([place(0, value), place(right, value)], fill=GRID, width=SCALE)
        write_words(draw, (corners[0] - 6, place(0, value)[1] / SCALE), label, "rm")
    write_words(draw, ((corners[0] + corners[2]) / 2, corners[3] + 24), titles[0], "ma")
    write_words(draw, (corners[0], _TOP_PX / 2), titles[1], "lm")
    for line, colour in zip(lines.values(), _COLOURS, strict=False):
        for curve in line.seeds:
            draw.line([place(*point) for point in curve], fill=colour, width=SCALE)
        draw.line([place(*point) for point in line.mean], fill=colour, width=3 * SCALE, joint="curve")
        for x, y in (place(*point) for point in line.mean):
            draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=colour)
