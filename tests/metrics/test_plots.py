import math

import numpy as np
import pytest
from PIL import ImageColor

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.metrics.plots import plot_curves, plot_frames, tick_labels, ticks
from fusionframes.ff_kernels.metrics.tables import Measure

CURVE = Measure("PSNR", "dB", 31, per_frame=(30.0, math.inf, 32.0))
SECOND = Measure("a measure with a long name", "", 0.1, per_frame=(0.1, 0.2))
BLUE, ORANGE = (ImageColor.getrgb(colour) for colour in ("#1f77b4", "#e07b10"))


def where(picture, colour):
    """Rows and columns of pixels close to a colour."""
    gap = np.abs(np.asarray(picture).astype(int) - colour).max(-1)
    return np.nonzero(gap < 40)


def test_plot_has_a_panel_per_curve():
    one, two = plot_curves([CURVE]), plot_curves([CURVE, Measure("FVD", "", 3.0), SECOND])
    assert one.mode == "RGB"
    assert two.width == one.width
    three = plot_curves([CURVE, SECOND, Measure("MSE", "", 1, per_frame=(1.0, 2.0))])
    assert three.height - two.height == two.height - one.height > 100
    frames = plot_frames([CURVE])
    assert frames.shape == (one.height, one.width, 3)
    assert 0 <= frames.min() < frames.max() <= 1


def test_reference_is_drawn_in_the_panel_of_its_measure():
    one = plot_curves([CURVE])
    both = plot_curves([CURVE, Measure("PSNR, reference", "dB", 3.0, per_frame=(30.0, 31.0, 33.0))])
    assert both.size == one.size
    assert len(where(one, ORANGE)[0]) == 0
    assert len(where(both, ORANGE)[0]) > 300


def test_curve_runs_through_its_values():
    rising = tuple(float(i) for i in range(9))
    rows, columns = where(plot_curves([Measure("MSE", "", 4, per_frame=rising)]), BLUE)
    # Higher values lie higher, and the line is straight.
    assert np.corrcoef(rows, columns)[0, 1] < -0.999
    later, shifted = where(plot_curves([Measure("MSE", "", 4, per_frame=rising, first=9)]), BLUE)
    assert shifted.min() > (columns.min() + columns.max()) / 2
    assert shifted.max() == columns.max()
    assert (later.min(), later.max()) == (rows.min(), rows.max())


def test_equal_frames_leave_a_gap_with_a_mark_above():
    values = [30.0, 31.0, math.inf, 31.0, 30.0]
    picture = plot_curves([Measure("PSNR", "dB", 31, per_frame=tuple(values))])
    whole = plot_curves([Measure("PSNR", "dB", 31, per_frame=tuple(min(v, 31.0) for v in values))])
    gap, line = set(where(picture, BLUE)[1]), set(where(whole, BLUE)[1])
    missing = sorted(line - gap)
    assert missing
    assert missing[0] < np.mean(sorted(line)) < missing[-1]
    ink = np.asarray(picture).max(-1)[24:36] < 90
    assert ink[:, missing].any()
    # Nothing but equal frames: marks, no line, no error.
    assert len(where(plot_curves([Measure("PSNR", "dB", math.inf, per_frame=(math.inf,) * 3)]), BLUE)[0]) == 0


@pytest.mark.parametrize("values", [(0.0, 0.0), (5.0, 5.0, 5.0), (-1e-9, 2e-9), (1e8, 3e8), (7.0,)])
def test_flat_tiny_large_and_single_values_are_drawn(values):
    assert len(where(plot_curves([Measure("x", "", 1, per_frame=values)]), BLUE)[0]) > 5


@pytest.mark.parametrize(
    ("low", "high", "most", "least", "expected"),
    [
        (0, 64, 10, 1, [0, 10, 20, 30, 40, 50, 60]),
        (0, 4, 10, 1, [0, 1, 2, 3, 4]),
        (-0.5, 0.5, 10, 1, [0]),
        (24.5, 31.5, 4, 0, [26, 28, 30]),
        (-0.003, 0.017, 4, 0, [0, 0.005, 0.01, 0.015]),
        (1.3, 1.4, 4, 0, [1.3, 1.35, 1.4]),
    ],
)
def test_ticks_are_round_and_few(low, high, most, least, expected):
    assert ticks(low, high, most, least) == pytest.approx(expected)


def test_tick_labels_tell_ticks_apart():
    assert tick_labels([0.9, 0.95, 1.0]) == ["0.90", "0.95", "1.00"]
    assert tick_labels([10.0, 20.0]) == ["10", "20"]
    assert tick_labels([0.0, 5e-6]) == ["0", "5.0e-06"]
    assert tick_labels([1e8]) == ["1.0e+08"]
    assert tick_labels([0.0]) == ["0"]


def test_plot_without_curves_is_one_sentence():
    with pytest.raises(InputError, match="curve over frames"):
        plot_curves([Measure("FVD", "", 3.0)])
