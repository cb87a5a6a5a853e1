"""Figures of presets kept as JSON, as a table and as a picture of quality against seconds."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError
from ..files import atomic_path
from ..metrics.plots import tick_labels, ticks

RESULTS = Path(__file__).parent / "results" / "quality.json"
TRUTH = "true clips"
# Column, key and format; a figure that was not measured is a dash.
_COLUMNS = (
    ("s per clip", "seconds", "{:.2f}"),
    ("all five right", "all_right", "{:.3f}"),
    ("shape IoU", "shape_iou", "{:.3f}"),
    ("colour RMSE", "color_rmse", "{:.2f}"),
    ("spread, px", "spread_px", "{:.2f}"),
    ("standard error", "spread_error_px", "{:.2f}"),
    ("interpolation, dB", "interpolation_db", "{:.2f}"),
    ("jerk x 1000", "jerk", "{:.2f}"),
    ("warping error x 1000", "warping_error", "{:.3f}"),
    ("dB to released", "psnr_to_released_db", "{:.2f}"),
    ("variety", "variety", "{:.2f}"),
    ("its standard error", "variety_error", "{:.2f}"),
)
# What the picture shows, with the direction that is better.
_PANELS = (
    ("spread_px", "spread of places, px (more is better)"),
    ("shape_iou", "shape IoU (more is better)"),
    ("interpolation_db", "interpolation, dB (averaging raises it)"),
    ("jerk", "jerk x 1000 (less is better)"),
)
_WIDTH_PX, _HEIGHT_PX, _MARGIN_PX = 420, 260, 58
_INK, _GRID, _DOT, _TRUTH = "#303030", "#dddddd", "#1f77b4", "#e07b10"

Rows = Mapping[str, Mapping[str, float]]


def table(rows: Rows) -> list[str]:
    """Return the lines of a table in Markdown: a row per preset, and one of the truth where it was measured."""
    used = [column for column in _COLUMNS if any(column[1] in figures for figures in rows.values())]
    lines = ["| | " + " | ".join(title for title, _, _ in used) + " |", "|---" * (len(used) + 1) + "|"]
    for name, figures in rows.items():
        cells = [form.format(figures[key]) if key in figures else "-" for _, key, form in used]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def read_results(path: Path = RESULTS) -> dict[str, Any]:
    """Return kept results: ``rows`` beside what they were measured with.

    Raises:
        InputError: if the file is not one of ours.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results["rows"], dict):
            return results
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"expected results of 'bench --quality' in '{path}', found something else: measure first")


def write_results(results: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Write results as JSON and their picture beside them, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(_rounded(results), indent=1) + "\n", encoding="utf-8")
    with atomic_path(path.with_suffix(".png")) as part:
        plot(results["rows"]).save(part, format="PNG")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    return round(value, 5) if isinstance(value, float) else value


def plot(rows: Rows) -> Image.Image:
    """Return figures against seconds per clip, one panel each, a dot per preset and a line for the truth."""
    shown = [(key, title) for key, title in _PANELS if any(key in figures for figures in rows.values())]
    if not shown or not any("seconds" in figures for figures in rows.values()):
        raise InputError("expected figures with seconds to draw, got none: measure with times")
    columns = min(2, len(shown))
    size = (_WIDTH_PX * columns, _HEIGHT_PX * math.ceil(len(shown) / columns))
    picture = Image.new("RGB", (2 * size[0], 2 * size[1]), "white")
    draw = ImageDraw.Draw(picture)
    for i, (key, title) in enumerate(shown):
        corner = (2 * _WIDTH_PX * (i % columns), 2 * _HEIGHT_PX * (i // columns))
        _draw_panel(draw, corner, key, title, rows)
    return picture.resize(size, Image.Resampling.BOX)


def _draw_panel(draw: ImageDraw.ImageDraw, corner: tuple[int, int], key: str, title: str, rows: Rows) -> None:
    font = ImageFont.load_default(24)
    dots = {name: (row["seconds"], row[key]) for name, row in rows.items() if "seconds" in row and key in row}
    levels = [row[key] for name, row in rows.items() if key in row]
    right = 1.15 * max(x for x, _ in dots.values())
    bottom, top = _range(levels)
    left_px, right_px = corner[0] + 2 * _MARGIN_PX, corner[0] + 2 * _WIDTH_PX - 30
    top_px, bottom_px = corner[1] + 60, corner[1] + 2 * _HEIGHT_PX - 70

    def place(x: float, y: float) -> tuple[float, float]:
        down = (top - y) / (top - bottom)
        return left_px + x / right * (right_px - left_px), top_px + down * (bottom_px - top_px)

    for value, label in _labelled(0.0, right, 6):
        draw.line([place(value, bottom), place(value, top)], fill=_GRID, width=2)
        draw.text((place(value, bottom)[0], bottom_px + 8), label, fill=_INK, font=font, anchor="ma")
    for value, label in _labelled(bottom, top, 5):
        draw.line([place(0, value), place(right, value)], fill=_GRID, width=2)
        draw.text((left_px - 10, place(0, value)[1]), label, fill=_INK, font=font, anchor="rm")
    draw.rectangle([left_px, top_px, right_px, bottom_px], outline="#909090", width=2)
    draw.text((left_px, top_px - 26), title, fill=_INK, font=font, anchor="lm")
    draw.text(((left_px + right_px) / 2, bottom_px + 40), "seconds per clip", fill=_INK, font=font, anchor="ma")
    if key in rows.get(TRUTH, {}):
        draw.line([place(0, rows[TRUTH][key]), place(right, rows[TRUTH][key])], fill=_TRUTH, width=3)
        draw.text((right_px - 8, place(0, rows[TRUTH][key])[1] + 4), TRUTH, fill=_TRUTH, font=font, anchor="ra")
    error = key.replace("_px", "_error_px")
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in (place(*dot) for dot in dots.values())]
    for name, (x, y) in dots.items():
        at = place(x, y)
        if error != key and rows[name].get(error):
            draw.line([place(x, y - rows[name][error]), place(x, y + rows[name][error])], fill=_DOT, width=3)
        draw.ellipse([at[0] - 8, at[1] - 8, at[0] + 8, at[1] + 8], fill=_DOT)
        is_right = x > right / 2
        anchor = "rm" if is_right else "lm"
        # Beside the dot, or where that is taken by the name of a near one, above or below it.
        spots = [(at[0] + (-14 if is_right else 14), at[1] + down) for down in (-14, 20, -42, 48)]
        boxes = {spot: draw.textbbox(spot, name, font, anchor) for spot in spots}
        free = [spot for spot, box in boxes.items() if not any(_meet(box, other) for other in taken)]
        spot = (free or spots)[0]
        draw.text(spot, name, fill=_INK, font=font, anchor=anchor)
        taken.append(boxes[spot])


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.25 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _labelled(low: float, high: float, most: int) -> list[tuple[float, str]]:
    values = ticks(low, high, most)
    return list(zip(values, tick_labels(values), strict=True))
