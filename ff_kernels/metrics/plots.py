"""Per-frame curves as a picture, drawn with Pillow alone, so that every installation has them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import InputError
from .tables import REFERENCE, Measure

_WIDTH_PX, _PANEL_PX, _FOOT_PX = 770, 200, 18
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 76, 18, 30, 22
_TEXT_PX, _LINE_PX, _DOT_PX = 13, 1.6, 2.4
# Drawn larger and reduced, as Pillow's lines have no soft edges of their own.
_OVERSAMPLING = 2
# More dots than this would run together.
_DOTS_MAX = 80
_TICKS_X, _TICKS_Y = 10, 4
_INK, _GRID, _EVALUATED, _REFERENCE = "#303030", "#dddddd", "#1f77b4", "#e07b10"


@dataclass(frozen=True)
class _Panel:
    """The axes of one panel: rectangle in pixels of the large picture, ranges of frames and values."""

    left: float
    top: float
    right: float
    bottom: float
    frames: tuple[float, float]
    values: tuple[float, float]

    def x(self, frame: float) -> float:
        return self.left + (frame - self.frames[0]) / (self.frames[1] - self.frames[0]) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.values[0]) / (self.values[1] - self.values[0]) * (self.bottom - self.top)


def plot_curves(measures: Sequence[Measure]) -> Image.Image:
    """Return an RGB picture, 770 pixels wide, with one panel per measure that has a curve, frames to the right.

    The curve of a measure named "X, reference" is drawn in the panel of X, in another colour and with a legend.
    Infinite values, frames equal to their reference, are gaps in the line with a mark at the upper edge.

    Args:
        measures: at least one with a value in ``per_frame``.

    Raises:
        InputError: if no measure has a curve.
    """
    drawn = {measure.name: measure for measure in measures if measure.per_frame}
    if not drawn:
        raise InputError("expected a measure with a curve over frames, got none: measure frames")
    panels = [name for name in drawn if name.removesuffix(REFERENCE) not in drawn or not name.endswith(REFERENCE)]
    last = max(measure.first + len(measure.per_frame) - 1 for measure in drawn.values())
    frames = (0.0, float(last)) if last else (-0.5, 0.5)
    scale = _OVERSAMPLING
    picture = Image.new("RGB", (_WIDTH_PX * scale, (_PANEL_PX * len(panels) + _FOOT_PX) * scale), "white")
    draw = ImageDraw.Draw(picture)
    for index, name in enumerate(panels):
        shown = [drawn[key] for key in (name, name + REFERENCE) if key in drawn]
        panel = _Panel(
            _LEFT_PX * scale, (_PANEL_PX * index + _TOP_PX) * scale, (_WIDTH_PX - _RIGHT_PX) * scale,
            (_PANEL_PX * (index + 1) - _BOTTOM_PX) * scale, frames, _value_range(shown),
        )  # fmt: skip
        _draw_axes(draw, panel, shown)
        for measure, colour in zip(shown, (_EVALUATED, _REFERENCE), strict=False):
            _draw_curve(draw, panel, measure, colour)
    middle = ((_LEFT_PX + _WIDTH_PX - _RIGHT_PX) / 2 * scale, (_PANEL_PX * len(panels) + _FOOT_PX / 2) * scale)
    draw.text(middle, "frame", fill=_INK, font=_font(), anchor="mm")
    return picture.resize((picture.width // scale, picture.height // scale), Image.Resampling.BOX)


def plot_frames(measures: Sequence[Measure]) -> Tensor:
    """Return the picture of ``plot_curves`` as ``[H, W, 3]`` float32 in 0..1; errors as there."""
    return torch.from_numpy(np.array(plot_curves(measures))).float() / 255


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT_PX * _OVERSAMPLING)


def _value_range(measures: Sequence[Measure]) -> tuple[float, float]:
    values = [value for measure in measures for value in measure.per_frame if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def ticks(low: float, high: float, most: int, least_step: float = 0.0) -> list[float]:
    """Return round numbers within ``low`` .. ``high``, at most ``most``, 1, 2 or 5 times a power of ten apart.

    Args:
        low: lower end.
        high: upper end, above ``low``.
        most: how many at most, 2 or more.
        least_step: smallest distance allowed, such as 1 for whole frames.
    """
    unit = 10.0 ** math.floor(math.log10(max((high - low) / most, least_step)))

    def within(step: float) -> range:
        # Ends that are ticks themselves count in spite of rounding.
        return range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)

    step = next(
        s for s in (unit, 2 * unit, 5 * unit, 10 * unit, 20 * unit) if len(within(s)) <= most and s >= least_step
    )
    return [i * step for i in within(step)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return ticks as text with as many decimals as tell them apart."""
    step = min((b - a for a, b in pairwise(values)), default=abs(values[0]) or 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 4 or max(map(abs, values)) >= 1e5:
        return [f"{value:.1e}" if value else "0" for value in values]
    return [f"{value:.{decimals}f}" for value in values]


def _draw_axes(draw: ImageDraw.ImageDraw, panel: _Panel, measures: Sequence[Measure]) -> None:
    font, scale = _font(), _OVERSAMPLING
    for frame in ticks(*panel.frames, _TICKS_X, least_step=1.0):
        draw.line([(panel.x(frame), panel.top), (panel.x(frame), panel.bottom)], fill=_GRID, width=scale)
        draw.text((panel.x(frame), panel.bottom + 4 * scale), f"{frame:.0f}", fill=_INK, font=font, anchor="ma")
    if any(math.isfinite(value) for measure in measures for value in measure.per_frame):
        values = ticks(*panel.values, _TICKS_Y)
        for value, label in zip(values, tick_labels(values), strict=True):
            draw.line([(panel.left, panel.y(value)), (panel.right, panel.y(value))], fill=_GRID, width=scale)
            draw.text((panel.left - 6 * scale, panel.y(value)), label, fill=_INK, font=font, anchor="rm")
    draw.rectangle([panel.left, panel.top, panel.right, panel.bottom], outline="#909090", width=scale)
    first = measures[0]
    title = f"{first.name} ({first.unit})" if first.unit else first.name
    height = panel.top - 11 * scale
    draw.text((panel.left, height), title, fill=_INK, font=font, anchor="lm")
    if any(map(math.isinf, first.per_frame)):
        right = panel.right - (160 * scale if len(measures) > 1 else 0)
        draw.text((right, height), "triangles: equal to the reference", fill=_INK, font=font, anchor="rm")
    if len(measures) > 1:
        draw.text((panel.right, height), "reference", fill=_REFERENCE, font=font, anchor="rm")
        draw.text((panel.right - 80 * scale, height), "evaluated", fill=_EVALUATED, font=font, anchor="rm")


def _draw_curve(draw: ImageDraw.ImageDraw, panel: _Panel, measure: Measure, colour: str) -> None:
    scale, run = _OVERSAMPLING, []
    has_dots = len(measure.per_frame) <= _DOTS_MAX
    for index, value in enumerate((*measure.per_frame, math.inf)):
        x = panel.x(measure.first + index)
        if math.isfinite(value):
            run.append((x, panel.y(value)))
            continue
        if len(run) > 1:
            draw.line(run, fill=colour, width=round(_LINE_PX * scale), joint="curve")
        # A value between two gaps has no line to show it.
        for dot_x, dot_y in run if has_dots or len(run) == 1 else []:
            radius = _DOT_PX * scale
            draw.ellipse([dot_x - radius, dot_y - radius, dot_x + radius, dot_y + radius], fill=colour)
        run = []
        if index < len(measure.per_frame):
            side = 4 * scale
            draw.polygon([(x, panel.top - side), (x - side, panel.top + side), (x + side, panel.top + side)], fill=_INK)
