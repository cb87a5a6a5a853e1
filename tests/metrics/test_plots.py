import math
import sys

import pytest

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.metrics.plots import plot_curves, plot_frames
from fusionframes.ff_kernels.metrics.tables import Measure

CURVE = Measure("PSNR", "dB", 31, per_frame=(30.0, math.inf, 32.0))
SECOND = Measure("a measure with a long name", "", 0.1, per_frame=(0.1, 0.2))


def test_plot_has_a_panel_per_curve():
    pytest.importorskip("matplotlib")
    one, two = plot_curves([CURVE]), plot_curves([CURVE, Measure("FVD", "", 3.0), SECOND])
    assert one.mode == "RGB"
    assert two.height == pytest.approx(2 * one.height, abs=2)
    beside = plot_curves([CURVE, Measure("PSNR, reference", "dB", 3.0, per_frame=(30.0, 31.0))])
    assert beside.size == one.size
    assert beside.tobytes() != one.tobytes()
    frames = plot_frames([CURVE])
    assert frames.shape == (one.height, one.width, 3)
    assert 0 <= frames.min() < frames.max() <= 1


def test_plot_without_curves_or_matplotlib_is_one_sentence(monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="curve over frames"):
        plot_curves([Measure("FVD", "", 3.0)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"fusionframes\[plots\]"):
        plot_curves([CURVE])
