from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionframes.ff_kernels.demo.world import measure, scenes
from fusionframes.ff_kernels.errors import ShapeError

ALL_SCENES = scenes.all_scenes()


def agreement(count: int, degrade: Callable[[torch.Tensor], torch.Tensor]) -> float:
    rng = np.random.default_rng(5)
    right = 0
    for _ in range(count):
        scene = ALL_SCENES[rng.integers(len(ALL_SCENES))]
        frames = scenes.render(scene, scenes.sample_layout(scene, rng), scenes.frame_times(scenes.KEYFRAMES))
        right += measure.score(scene, measure.measure_scene(degrade(frames)))["all"]
    return right / count


def add_noise(frames: torch.Tensor) -> torch.Tensor:
    return frames + 0.03 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("degrade", "least"),
    [(lambda frames: frames, 0.99), (add_noise, 0.97), (lambda frames: 0.9 * frames, 0.97)],
    ids=["clean", "noise", "dimmed"],
)
def test_measure_scene_reads_all_attributes_back(degrade, least):
    assert agreement(48, degrade) >= least


@pytest.mark.parametrize("motion", scenes.MOTIONS)
@pytest.mark.parametrize("count", [scenes.MEDIUM_FRAMES, scenes.FULL_FRAMES], ids=["medium", "full"])
def test_measure_scene_reads_higher_frame_rates(motion, count):
    scene = scenes.Scene("small", "yellow", "cross", motion, "white")
    layout = scenes.sample_layout(scene, np.random.default_rng(1))
    assert measure.measure_scene(scenes.render(scene, layout, scenes.frame_times(count))) == scene


def test_measure_clip_quantities_match_the_track():
    scene = scenes.Scene("large", "blue", "triangle", "left", "gray")
    layout = scenes.Layout(centre_x=32.0, centre_y=30.0, travel_px=24.0)
    found = measure.measure_clip(scenes.render(scene, layout, scenes.frame_times(scenes.KEYFRAMES)))
    assert found.travel_x_px == pytest.approx(-24.0, abs=0.5)
    assert found.travel_y_px == pytest.approx(0.0, abs=0.5)
    assert found.radius_px == pytest.approx(13.0, abs=0.3)
    assert found.area_ratio == pytest.approx(1.0, abs=0.05)
    assert found.color_rgb == pytest.approx(scenes.COLORS["blue"], abs=0.01)
    assert found.background_rgb == pytest.approx(scenes.BACKGROUNDS["gray"], abs=0.01)
    assert found.visible_frames == 1.0
    assert found.shape_iou > 0.9


def test_measure_scene_missing_frames_are_skipped():
    scene = scenes.Scene("small", "green", "square", "right", "black")
    frames = scenes.render(scene, scenes.Layout(32.0, 32.0, 30.0), scenes.frame_times(scenes.KEYFRAMES))
    frames[2] = 0.0
    found = measure.measure_clip(frames)
    assert found.scene == scene
    assert found.visible_frames == pytest.approx(0.8)


@pytest.mark.parametrize("background", scenes.BACKGROUNDS)
def test_measure_clip_empty_frames_give_a_guess(background):
    frames = torch.tensor(scenes.BACKGROUNDS[background])[:, None, None].expand(5, 3, 64, 64)
    found = measure.measure_clip(frames)
    assert found.visible_frames == 0.0
    assert found.scene.background == background
    assert found.scene.motion == "stays"


@given(st.integers(1, 6), st.floats(-5.0, 5.0), st.floats(0.0, 50.0), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_measure_scene_never_raises_on_finite_frames(count, offset, spread, seed):
    noise = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    assert isinstance(measure.measure_scene(offset + spread * noise), scenes.Scene)


@pytest.mark.parametrize("shape", [(3, 64, 64), (0, 3, 64, 64), (5, 64, 64, 3)], ids=["rank", "empty", "last"])
def test_measure_scene_wrong_shape_names_it(shape):
    with pytest.raises(ShapeError, match=str(list(shape)).replace("[", r"\[")):
        measure.measure_scene(torch.zeros(shape))


def test_score_names_the_wrong_attribute():
    scene = scenes.Scene("small", "red", "circle", "up", "black")
    verdict = measure.score(scene, scenes.Scene("small", "red", "circle", "down", "black"))
    assert verdict == {
        "size": True,
        "color": True,
        "shape": True,
        "motion": False,
        "background": True,
        "all": False,
    }
