"""Per-frame curves as a picture; needs matplotlib, an optional part of the installation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .tables import REFERENCE, Measure

_WIDTH_IN, _ROW_IN = 7.0, 1.9
_DPI = 110


def require_matplotlib() -> None:
    """Raise an ``InputError`` unless matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError(
            "expected matplotlib for a plot, found none: run 'pip install fusionframes[plots]' or leave the plot out"
        ) from error


def plot_curves(measures: Sequence[Measure]) -> Image.Image:
    """Return an RGB picture with one panel per measure that has a curve, frames to the right.

    The curve of a measure named "X, reference" is dashed in the panel of X.

    Infinite values, frames equal to their reference, are gaps in the line with a mark at the upper edge.

    Args:
        measures: at least one with two or more values in ``per_frame``.

    Raises:
        InputError: if no measure has a curve, or matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = {measure.name: measure for measure in measures if len(measure.per_frame) > 1}
    if not drawn:
        raise InputError("expected a measure with a curve over frames, got none: give clips of two or more frames")
    panels = [name for name in drawn if name.removesuffix(REFERENCE) not in drawn or not name.endswith(REFERENCE)]
    figure = Figure(figsize=(_WIDTH_IN, _ROW_IN * len(panels)), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        unit = drawn[name].unit
        axes.set_title(f"{name} ({unit})" if unit else name, fontsize=8, loc="left")
        _draw(axes, drawn[name], "-")
        if name + REFERENCE in drawn:
            _draw(axes, drawn[name + REFERENCE], "--")
            axes.legend(["evaluated", "reference"], fontsize=7)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    axes.set_xlabel("frame", fontsize=8)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _draw(axes: Any, measure: Measure, style: str) -> None:
    values = [value if math.isfinite(value) else math.nan for value in measure.per_frame]
    axes.plot(range(len(values)), values, style, marker=".", linewidth=1)
    equal = [i for i, value in enumerate(measure.per_frame) if math.isinf(value)]
    if equal:
        axes.plot(equal, [1.0] * len(equal), "^", color="black", transform=axes.get_xaxis_transform(), clip_on=False)


def plot_frames(measures: Sequence[Measure]) -> Tensor:
    """Return the picture of ``plot_curves`` as ``[H, W, 3]`` float32 in 0..1; errors as there."""
    return torch.from_numpy(np.array(plot_curves(measures))).float() / 255
