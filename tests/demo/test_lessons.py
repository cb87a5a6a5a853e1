from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fusionframes.ff_kernels.checkpoints.folder import TOKENIZER_NAME
from fusionframes.ff_kernels.demo import WEIGHTS, batches, lessons
from fusionframes.ff_kernels.demo.world.scenes import KEYFRAMES, SHAPES, Scene, is_held_out, reversed_scene
from fusionframes.ff_kernels.stages.tokenizer import Tokenizer

LEFT = Scene("small", "red", "circle", "left", "black")
RIGHT = Scene("small", "red", "circle", "right", "black")
BLUE = Scene("small", "blue", "circle", "left", "black")
# Latents are small gray pictures.
MOVQ = SimpleNamespace(encode=lambda pixels: pixels.mean(dim=1, keepdim=True).expand(-1, 4, -1, -1)[..., ::4, ::4])


@pytest.fixture(scope="module")
def made():
    latents = torch.randn(3, KEYFRAMES, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    clips = batches.LatentClips(latents, (LEFT, RIGHT, BLUE))
    return clips, lessons.make_lessons(clips, MOVQ)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(WEIGHTS / "text_encoders" / TOKENIZER_NAME)


def test_lessons_mean_counts_clips_that_run_backwards(made):
    clips, found = made
    left, right, _ = clips.latents.float()
    assert torch.allclose(found.target(LEFT, 1.0), (left + right.flip(0)) / 2, atol=1e-3)
    assert torch.allclose(found.target(RIGHT, 1.0), (right + left.flip(0)) / 2, atol=1e-3)


def test_lessons_start_with_the_same_paint_for_every_colour(made):
    _, found = made
    assert torch.equal(found.target(LEFT, 0.0), found.target(BLUE, 0.0))
    assert not torch.allclose(found.target(LEFT, 1.0), found.target(BLUE, 1.0))
    half = (found.target(BLUE, 0.0) + found.target(BLUE, 1.0)) / 2
    assert torch.allclose(found.target(BLUE, 0.5), half, atol=1e-6)


def test_lessons_paint_moves_the_way_the_caption_says(made):
    _, found = made
    columns = torch.arange(16.0)
    for scene, sign in ((LEFT, -1), (RIGHT, 1)):
        paint = (found.target(scene, 0.0) - found.plain["black"])[:, 0].sum(dim=1)  # [T, w]
        places = (paint * columns).sum(dim=1) / paint.sum(dim=1)
        assert (sign * places.diff() > 1).all()


def test_colours_and_noise_come_in_after_a_hold_and_stay():
    assert lessons.grown_at(0.0) == lessons.grown_at(lessons.HOLD) == 0
    assert lessons.grown_at(lessons.HOLD + lessons.RAMP / 2) == pytest.approx(0.5)
    assert lessons.grown_at(0.9) == 1


def test_lessons_ask_only_for_pairs_that_clips_show():
    bounces, stays = (replace(LEFT, motion=motion) for motion in ("bounces", "stays"))
    grows, shrinks = (replace(LEFT, motion=motion) for motion in ("grows", "shrinks"))
    shown = (bounces, stays, replace(BLUE, motion="stays"), grows)
    found = lessons.make_lessons(batches.LatentClips(torch.zeros(4, KEYFRAMES, 4, 16, 16), shown), MOVQ)
    assert set(found.pairs) == {(bounces, stays), (stays, bounces), (grows, shrinks), (shrinks, grows)}


def test_draw_lessons_shows_opposite_captions_the_same_noise(made, tokenizer):
    _, found = made
    for seed in range(5):
        latents, noise, ids, mask, keep, timesteps, bars, shown, opposite = lessons.draw_lessons(
            np.random.default_rng(seed), 8, found, tokenizer, grown=1.0
        )
        assert torch.equal(noise[::2], noise[1::2])
        assert torch.equal(timesteps[::2], timesteps[1::2])
        assert torch.equal(bars[::2], bars[1::2])
        assert noise.std() == pytest.approx(1.0, abs=0.05)
        assert keep.all()
        assert not shown.any()
        assert opposite.tolist() == [1, -1] * 4
        named = 0
        for scene in (LEFT, RIGHT, BLUE, reversed_scene(BLUE)):
            words = tokenizer.encode(scene.caption()).ids[0]
            for row in range(8):
                if torch.equal(ids[row][: mask[row].sum()], words):
                    named += 1
                    assert torch.equal(latents[row], found.target(scene, 1.0))
        assert named


def test_draw_lessons_are_quiet_and_in_paint_at_first(made, tokenizer):
    _, found = made
    latents, noise, *_ = lessons.draw_lessons(np.random.default_rng(0), 8, found, tokenizer, grown=0.0)
    assert noise.std() == pytest.approx(lessons.QUIET, rel=0.05)
    painted = [found.target(scene, 0.0) for scene in (LEFT, RIGHT)]
    assert all(any(torch.equal(row, target) for target in painted) for row in latents)


@pytest.fixture(scope="module")
def twins(made):
    return lessons.encode_twins(MOVQ, count=3, seed=0)


def test_encode_twins_differ_in_shape_alone(twins):
    for start in range(0, 12, 4):
        scenes = twins.scenes[start : start + 4]
        assert [scene.shape for scene in scenes] == list(SHAPES)
        assert len({replace(scene, shape="circle") for scene in scenes}) == 1
        clips = twins.latents[start : start + 4].float()
        assert (clips[0] - clips[1:]).abs().amax(dim=(1, 2, 3, 4)).min() > 0.1
        # The same place: of every pair most of the picture is equal.
        assert ((clips[0] - clips[1:]).abs() < 1e-3).float().mean(dim=(1, 2, 3, 4)).min() > 0.7


def test_encode_twins_shows_no_held_out_combination_forwards_or_backwards():
    movq = SimpleNamespace(encode=lambda pixels: pixels[..., ::32, ::32])
    scenes = lessons.encode_twins(movq, count=60, seed=1).scenes
    assert len(scenes) == 240
    assert not any(is_held_out(scene) or is_held_out(reversed_scene(scene)) for scene in scenes)


def test_draw_twins_shows_another_shape_than_the_one_it_names(twins, tokenizer):
    clips = list(twins.latents.float())
    both = clips + [clip.flip(0) for clip in clips]
    words = [scene.caption() for scene in twins.scenes]
    words += [reversed_scene(scene).caption() for scene in twins.scenes]
    for seed in range(3):
        latents, noise, ids, mask, keep, _, bars, shown, opposite = lessons.draw_twins(
            np.random.default_rng(seed), 8, twins, tokenizer
        )
        assert keep.all()
        assert opposite.tolist() == [1, -1] * 4
        for same in (noise, bars, shown):
            assert torch.equal(same[::2], same[1::2])
        assert (latents[::2] - latents[1::2]).abs().amax(dim=(1, 2, 3, 4)).min() > 0.1
        assert ((bars > 0.2) & (bars < 0.95)).all()
        for i in range(8):
            asked = [k for k, clip in enumerate(both) if torch.equal(clip, latents[i])]
            seen = [k for k, clip in enumerate(both) if torch.equal(clip, shown[i])]
            assert any(a // 4 == b // 4 and a != b for a in asked for b in seen)
            said = ids[i][: mask[i].sum()]
            assert any(torch.equal(tokenizer.encode(words[k]).ids[0], said) for k in asked)


@pytest.fixture(scope="module")
def growing():
    latents = torch.randn(3, KEYFRAMES, 4, 16, 16, generator=torch.Generator().manual_seed(1)).half()
    scenes = (LEFT, replace(LEFT, motion="grows"), replace(BLUE, motion="shrinks"))
    return lessons.select_growth(batches.LatentClips(latents, scenes))


def test_select_growth_keeps_the_clips_that_change_their_size(growing):
    assert [scene.motion for scene in growing.scenes] == ["grows", "shrinks"]
    assert len(growing.latents) == 2


def test_select_growth_keeps_all_where_none_does(made):
    clips, _ = made
    assert lessons.select_growth(clips).scenes == clips.scenes
    assert torch.equal(lessons.select_growth(clips).latents, clips.latents)


def test_draw_reverses_shows_more_of_the_named_clip_than_of_its_reverse(growing, tokenizer):
    both = [*growing.latents.float(), *growing.latents.float().flip(1)]
    words = [scene.caption() for scene in [*growing.scenes, *map(reversed_scene, growing.scenes)]]
    canonical = 0
    for seed in range(3):
        latents, noise, ids, mask, keep, _, bars, shown, opposite = lessons.draw_reverses(
            np.random.default_rng(seed), 8, growing, tokenizer
        )
        assert keep.all()
        assert opposite.tolist() == [1, -1] * 4
        assert torch.equal(noise[::2], noise[1::2])
        assert torch.equal(bars[::2], bars[1::2])
        assert ((bars > 0.02) & (bars < 0.93)).all()
        assert torch.equal(latents[::2], latents[1::2].flip(1))
        assert torch.equal(shown[::2], shown[1::2].flip(1))
        for row, seen, said, used in zip(latents, shown, ids, mask, strict=True):
            (asked,) = [k for k, clip in enumerate(both) if torch.equal(clip, row)]
            reverse = row.flip(0)
            share = ((seen - reverse) * (row - reverse)).sum() / (row - reverse).square().sum()
            assert 0.5 <= share < 1
            assert torch.allclose(seen, torch.lerp(reverse, row, share), atol=1e-4)
            canonical += torch.equal(said[: used.sum()], tokenizer.encode(words[asked]).ids[0])
    # Of 24 rows about 17 are said in the caption's own words: half on purpose, others as paraphrases often are.
    assert 10 <= canonical <= 23


def test_draw_keyframes_and_lessons_mixes_clips_noise_and_twins(made, twins, tokenizer):
    clips, found = made
    for seed in range(4):
        latents, noise, ids, mask, keep, timesteps, bars, shown, opposite = lessons.draw_keyframes_and_lessons(
            np.random.default_rng(seed), 16, clips, found, twins, tokenizer
        )
        assert latents.shape == noise.shape == shown.shape == (16, KEYFRAMES, 4, 16, 16)
        assert ids.shape == mask.shape
        assert len(keep) == len(timesteps) == len(bars) == 16
        assert torch.equal(latents[:10], shown[:10])
        assert not shown[10:12].any()
        assert (bars[10:12] < 0.04).all()
        assert (latents[12:] - shown[12:]).abs().amax(dim=(1, 2, 3, 4)).min() > 0.1
        assert keep[10:].all()
        assert opposite.tolist() == [0] * 10 + [1, -1] * 3
        # A tokenized caption ends with the token 1, and nothing but padding follows.
        lengths = mask.sum(dim=1)
        assert (ids[torch.arange(16), lengths - 1] == 1).all()
        assert not ids[mask == 0].any()


def test_draw_keyframes_and_lessons_at_the_end_tells_growth_and_weighs_twins_alone(twins, tokenizer):
    shown = (LEFT, replace(LEFT, motion="grows"))
    clips = batches.LatentClips(torch.randn(2, KEYFRAMES, 4, 16, 16), shown)
    found = lessons.make_lessons(clips, MOVQ)
    growth = [found.target(replace(LEFT, motion=motion), 1.0) for motion in ("grows", "shrinks")]
    for seed in range(4):
        latents, *_, shown, opposite = lessons.draw_keyframes_and_lessons(
            np.random.default_rng(seed), 16, clips, found, twins, tokenizer, lessons.FINISH
        )
        assert opposite.tolist() == [0] * 6 + [1, -1] * 3 + [0] * 4
        assert all(any(torch.equal(row, target) for target in growth) for row in latents[6:8])
        assert not shown[6:8].any()
        # The one clip of growth, mixed with its reverse.
        assert torch.allclose(shown[8] + shown[9], clips.latents[1] + clips.latents[1].flip(0), atol=1e-5)
        assert not shown[10:12].any()
        assert (latents[12:] - shown[12:]).abs().amax(dim=(1, 2, 3, 4)).min() > 0.1


def test_draw_keyframes_and_lessons_without_room_for_a_lesson_draws_clips(made, twins, tokenizer):
    clips, found = made
    latents, *_, shown, opposite = lessons.draw_keyframes_and_lessons(
        np.random.default_rng(0), 1, clips, found, twins, tokenizer
    )
    assert torch.equal(latents, shown)
    assert opposite.tolist() == [0]


def test_draw_steps_keeps_to_its_span():
    timesteps, bars = lessons.draw_steps(np.random.default_rng(0), 200, lessons.BLIND_STEPS)
    assert set(timesteps.tolist()) == {880, 900, 920, 940, 960}
    assert torch.equal(timesteps.argsort(stable=True), bars.argsort(descending=True, stable=True))
