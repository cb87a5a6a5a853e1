import pytest
import torch

from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.metrics.consistency import temporal_curves
from fusionframes.ff_kernels.metrics.fidelity import fidelity_curves
from fusionframes.ff_kernels.metrics.frames import compare_frames, measure_consistency


def clip(seed, frames=19, side=24):
    return torch.rand(frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


def gap(a, b):
    return (a - b).abs().mean((1, 2, 3))


def test_chunks_give_the_curves_of_the_whole_clip():
    a, b, steps = clip(0), clip(1), []
    measures = compare_frames(a, b, gap, progress=lambda *step: steps.append(step))
    curves = fidelity_curves(a, b) | {"LPIPS": gap(a, b)}
    assert [m.name for m in measures] == list(curves)
    for measure, curve in zip(measures, curves.values(), strict=True):
        assert measure.per_frame == pytest.approx(curve.tolist(), rel=1e-5)
        assert measure.mean == pytest.approx(curve.mean().item(), rel=1e-5)
    assert [m.unit for m in measures] == ["dB", "", "", ""]
    assert steps == [(8, 19), (16, 19), (19, 19)]


def test_consistency_in_chunks_is_that_of_the_whole_clip():
    frames, steps = clip(0), []
    measures = measure_consistency(frames, gap, progress=lambda *step: steps.append(step))
    curves = temporal_curves(frames, gap)
    assert [m.name for m in measures] == list(curves)
    for measure, curve in zip(measures, curves.values(), strict=True):
        assert measure.per_frame == pytest.approx(curve.tolist(), rel=1e-5)
        assert measure.first == 1
    assert steps[-1] == (19, 19)


def test_progress_may_end_the_run_between_chunks():
    seen = []

    def stop(done, total):
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_frames(clip(0), clip(1), progress=stop)
    assert seen == [8]


def test_unequal_and_short_clips_are_named():
    with pytest.raises(ShapeError, match=r"\[19, 3, 24, 24\], got \[18, 3, 24, 24\]"):
        compare_frames(clip(0), clip(1, frames=18))
    with pytest.raises(ShapeError, match="3 or more frames for temporal consistency, got 2"):
        measure_consistency(clip(0, frames=2))
    with pytest.raises(InputError, match=r"in 0\.\.1, got"):
        measure_consistency(clip(0) * 255)
