import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionframes.ff_kernels.demo.world import scenes, wording

ALL_SCENES = scenes.all_scenes()
TABLES = {
    "size": wording.SIZE_WORDS,
    "color": wording.COLOR_WORDS,
    "shape": wording.SHAPE_WORDS,
    "background": wording.BACKGROUND_WORDS,
}


def draw(scene: scenes.Scene, seed: int, count: int = scenes.KEYFRAMES) -> torch.Tensor:
    layout = scenes.sample_layout(scene, np.random.default_rng(seed))
    return scenes.render(scene, layout, scenes.frame_times(count))


def says(caption: str, phrases: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{phrase}\b", caption) for phrase in phrases)


def test_all_scenes_are_distinct_and_complete():
    assert len(set(ALL_SCENES)) == 4 * 6 * 2 * 8 * 4
    assert len({scene.caption() for scene in ALL_SCENES}) == len(ALL_SCENES)


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (
            scenes.Scene("large", "purple", "triangle", "up", "white"),
            "a large purple triangle moves up on a white background",
        ),
        (
            scenes.Scene("small", "red", "circle", "grows", "black"),
            "a small red circle grows on a black background",
        ),
        (
            scenes.Scene("small", "cyan", "cross", "stays", "gray"),
            "a small cyan cross stays still on a gray background",
        ),
    ],
    ids=["direction", "scale", "still"],
)
def test_caption_is_canonical(scene, caption):
    assert scene.caption() == caption


@pytest.mark.parametrize("attribute", scenes.ATTRIBUTES)
def test_scene_with_unknown_word_names_it(attribute):
    values = {name: allowed[0] for name, allowed in scenes.ATTRIBUTES.items()}
    with pytest.raises(ValueError, match=f"expected {attribute} in .*, got 'mauve'"):
        scenes.Scene(**values | {attribute: "mauve"})


def test_held_out_split_has_a_scene_with_its_reverse():
    assert all(scenes.is_held_out(scene) == scenes.is_held_out(scenes.reversed_scene(scene)) for scene in ALL_SCENES)


def test_held_out_split_leaves_every_pair_of_words_to_train_on():
    held_out = [scene for scene in ALL_SCENES if scenes.is_held_out(scene)]
    assert 0.1 < len(held_out) / len(ALL_SCENES) < 0.15
    trained = {
        (first, second, getattr(scene, first), getattr(scene, second))
        for scene in ALL_SCENES
        if not scenes.is_held_out(scene)
        for first in scenes.ATTRIBUTES
        for second in scenes.ATTRIBUTES
    }
    everything = {
        (first, second, getattr(scene, first), getattr(scene, second))
        for scene in ALL_SCENES
        for first in scenes.ATTRIBUTES
        for second in scenes.ATTRIBUTES
    }
    assert trained == everything


def test_render_every_scene_keeps_object_inside_the_frame():
    for seed, scene in enumerate(ALL_SCENES):
        frames = draw(scene, seed, scenes.MEDIUM_FRAMES)
        background = torch.tensor(scenes.BACKGROUNDS[scene.background])[:, None]
        border = torch.cat((frames[:, :, 0], frames[:, :, -1], frames[..., 0], frames[..., -1]), -1)
        assert torch.equal(border, background.expand_as(border)), scene
        assert frames.amin() >= 0.0
        assert frames.amax() <= 1.0


def test_render_returns_float32_channels_first():
    frames = draw(ALL_SCENES[0], 0)
    assert frames.dtype == torch.float32
    assert frames.shape == (5, 3, 64, 64)


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("radius", [0.6 * 7.0, 7.0, 13.0, 1.4 * 13.0], ids=["least", "small", "large", "most"])
def test_shape_coverage_matches_area_and_extents(shape, radius):
    centre, size = torch.tensor([32.0]), torch.tensor([radius])
    coverage = scenes.shape_coverage(shape, centre, centre, size)[0]
    assert coverage.sum().item() == pytest.approx(scenes.shape_area(shape, radius), rel=0.03)
    half_width, half_height = scenes.half_extents(shape, radius)
    rows, columns = (coverage.sum(dim) > 0.5 for dim in (1, 0))
    assert rows.sum().item() == pytest.approx(2.0 * half_height, abs=2.0)
    assert columns.sum().item() == pytest.approx(2.0 * half_width, abs=2.0)


@given(st.sampled_from(ALL_SCENES), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_reversed_scene_shows_the_clip_backwards(scene, seed):
    layout = scenes.sample_layout(scene, np.random.default_rng(seed))
    times = scenes.frame_times(scenes.KEYFRAMES)
    forwards = scenes.render(scene, layout, times)
    backwards = scenes.render(scenes.reversed_scene(scene), layout, times)
    torch.testing.assert_close(forwards.flip(0), backwards, atol=1e-4, rtol=0.0)
    assert scenes.reversed_scene(scenes.reversed_scene(scene)) == scene


@given(st.sampled_from(ALL_SCENES), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_sample_layout_motion_is_unmistakable(scene, seed):
    layout = scenes.sample_layout(scene, np.random.default_rng(seed))
    x, y, radius = scenes.track(scene, layout, scenes.frame_times(scenes.KEYFRAMES))
    shift_x, shift_y = (x[-1] - x[0]).item(), (y[-1] - y[0]).item()
    if scene.motion in ("left", "right"):
        assert shift_x * (1.0 if scene.motion == "right" else -1.0) >= 22.0 - 1e-3
    elif scene.motion in ("up", "down"):
        assert shift_y * (1.0 if scene.motion == "down" else -1.0) >= 22.0 - 1e-3
    elif scene.motion == "bounces":
        assert (y[::2].amin() - y[1::2].amax()).item() >= 16.0 - 1e-3
    elif scene.motion in ("grows", "shrinks"):
        ratio = (radius[-1] / radius[0]).item()
        assert ratio == pytest.approx((1.4 / 0.6) ** (1.0 if scene.motion == "grows" else -1.0))
    else:
        assert (shift_x, shift_y) == (0.0, 0.0)


@given(st.sampled_from(ALL_SCENES), st.integers(0, 2**32 - 1))
@settings(max_examples=400, deadline=None)
def test_paraphrase_never_contradicts_the_scene(scene, seed):
    caption = scenes.paraphrase(scene, np.random.default_rng(seed))
    assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption)
    for attribute, table in TABLES.items():
        for value, phrases in table.items():
            assert value == getattr(scene, attribute) or not says(caption, phrases)
    for motion in scenes.MOTIONS:
        phrases = wording.FINITE_WORDS[motion] + wording.GERUND_WORDS[motion]
        assert motion == scene.motion or not says(caption, phrases)
    assert says(caption, TABLES["shape"][scene.shape]) or says(caption, TABLES["color"][scene.color])


def test_paraphrase_mixes_canonical_and_free_captions():
    rng = np.random.default_rng(0)
    scene = ALL_SCENES[700]
    captions = [scenes.paraphrase(scene, rng) for _ in range(1000)]
    assert 0.35 < np.mean([caption == scene.caption() for caption in captions]) < 0.48
    assert len(set(captions)) > 200


def test_caption_corpus_covers_every_word_and_is_reproducible():
    corpus = scenes.caption_corpus(3, 100)
    words = set(" ".join(corpus).replace(",", "").split())
    assert len(corpus) == 100
    assert words == set(scenes.vocabulary())
    assert corpus == scenes.caption_corpus(3, 100)
    rng = np.random.default_rng(0)
    for scene in ALL_SCENES:
        for caption in (scene.caption(), scenes.paraphrase(scene, rng)):
            assert set(caption.replace(",", "").split()) <= words


def test_caption_corpus_too_small_names_the_count():
    with pytest.raises(ValueError, match="got 10"):
        scenes.caption_corpus(0, 10)
