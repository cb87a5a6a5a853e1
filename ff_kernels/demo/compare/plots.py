"""Results as pictures: a bar per row, a line for the spread, a dot per seed; needs matplotlib."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...frames_io import write_image
from ...metrics.plots import require_matplotlib
from ..scenes import FULL_FRAMES, MEDIUM_FRAMES
from . import decoders, gaps, variants

_DPI = 110
_PANEL_IN, _BAR_IN = 2.6, 0.32
# Group to panels: the number and its title.
PANELS: dict[str, tuple[tuple[str, str], ...]] = {
    variants.GROUP: (
        ("color", "color"),
        ("shape", "shape"),
        ("background", "background"),
        ("motion", "motion"),
        ("warping", "warping error"),
    ),
    gaps.GROUP: (
        (f"PSNR {MEDIUM_FRAMES}", "PSNR, 5 to 17 frames (dB)"),
        (f"PSNR {FULL_FRAMES}", "PSNR, 5 to 65 frames (dB)"),
        (f"SSIM {MEDIUM_FRAMES}", "SSIM, 17 frames"),
        (f"SSIM {FULL_FRAMES}", "SSIM, 65 frames"),
    ),
    decoders.GROUP: (("PSNR", "PSNR (dB)"), ("SSIM", "SSIM")),
}


def draw_plots(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write one picture per group of the results into a folder and return their paths.

    Raises:
        InputError: if matplotlib is missing.
    """
    require_matplotlib()
    paths = []
    for group, panels in PANELS.items():
        if group in results:
            paths.append(folder / f"{group}.png")
            write_image(plot_rows(results[group]["rows"], panels), paths[-1])
    return paths


def plot_rows(rows: Mapping[str, Mapping[str, Mapping[str, float]]], panels: Sequence[tuple[str, str]]) -> Image.Image:
    """Return a picture with one panel per number, rows downwards, an axis that starts near the smallest value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(rows)
    size = (1.6 + _PANEL_IN * len(panels), 0.9 + _BAR_IN * len(names))
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for i, (axes, (key, title)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)
    ):
        values = [[numbers[key] for numbers in rows[name].values() if key in numbers] for name in names]
        _draw_bars(axes, values)
        axes.set_title(title, fontsize=8, loc="left")
        axes.set_yticks(range(len(names)), names if i == 0 else [""] * len(names), fontsize=7)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _draw_bars(axes: Any, values: Sequence[Sequence[float]]) -> None:
    flat = [value for row in values for value in row]
    # A difference of tenths of a decibel would not be seen on an axis from zero; shares start at zero.
    low = 0.0 if min(flat) <= 1 and max(flat) - min(flat) > 0.1 else min(flat) - 0.3 * (max(flat) - min(flat))
    for place, row in enumerate(values):
        if not row:
            continue
        mean, deviation = statistics.fmean(row), statistics.stdev(row) if len(row) > 1 else 0.0
        axes.barh(place, mean - low, left=low, xerr=deviation or None, height=0.6, color="#7aa6c2", ecolor="#333333")
        axes.plot(row, [place] * len(row), ".", color="#333333", markersize=3)
    axes.set_xlim(left=low)
