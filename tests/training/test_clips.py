"""Clips with captions: what is found, how it is cut and cached under its key, and what is named as unusable."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.media.video import write_frames
from fusionframes.ff_kernels.training.clips import (
    Windows,
    cache_contexts,
    cache_latents,
    find_training_clips,
    read_windows,
)

KEYFRAMES = Windows(3, {"keyframes": 2.0}, area=16 * 16, multiple=8)


def write(folder, name, frames=40, fps=24.0, caption="a clip", size=(16, 16), suffix=".mp4"):
    """A clip whose grey is its frame number."""
    greys = (torch.arange(frames) * 4 % 256).to(torch.uint8)
    write_frames(greys[:, None, None, None].expand(-1, *size, 3), folder / f"{name}{suffix}", fps)
    if caption:
        (folder / f"{name}.txt").write_text(caption + "\n")


def numbers(window):
    """Frame numbers of ``[F, 3, H, W]``."""
    return [round(grey * 255 / 4) for grey in window.mean(dim=(1, 2, 3)).tolist()]


def test_every_twelfth_of_24_frames_is_a_keyframe_and_windows_follow_each_other(tmp_path):
    write(tmp_path, "a", frames=63)
    (clip,) = find_training_clips(tmp_path, 10)
    windows = read_windows(clip, KEYFRAMES)["keyframes"]
    assert windows.shape == (2, 3, 3, 16, 16)
    assert [numbers(window) for window in windows] == [[0, 12, 24], [36, 48, 60]]
    assert clip.caption == "a clip"
    assert clip.motion_score == 10


def test_spacing_follows_the_rate_of_the_clip(tmp_path):
    write(tmp_path, "a", frames=32, fps=30.0)
    (clip,) = find_training_clips(tmp_path, 10)
    assert numbers(read_windows(clip, KEYFRAMES)["keyframes"][0]) == [0, 15, 30]


def test_png_frames_have_the_rate_that_is_said(tmp_path):
    write(tmp_path, "a", frames=5, suffix=".png")
    (clip,) = find_training_clips(tmp_path, 10)
    windows = Windows(3, {"keyframes": 2.0}, 16 * 16, 8, source_fps=4.0)
    assert numbers(read_windows(clip, windows)["keyframes"][0]) == [0, 2, 4]


@pytest.mark.parametrize(
    ("size", "bucket"), [((512, 512), (512, 512)), ((640, 480), (576, 448)), ((1080, 1920), (384, 704))]
)
def test_buckets_have_one_area_and_sides_of_the_networks_multiple(size, bucket):
    assert Windows(3, {"keyframes": 2.0}, 512 * 512, 64).bucket(*size) == bucket


def test_a_jsonl_names_videos_captions_and_motion(tmp_path):
    write(tmp_path, "a", caption="")
    rows = [{"video": "a.mp4", "caption": "one"}, {"video": "a.mp4", "caption": "two", "motion_score": 40}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    clips = find_training_clips(tmp_path / "list.jsonl", 10)
    assert [(clip.caption, clip.motion_score) for clip in clips] == [("one", 10), ("two", 40)]
    for line in ('{"video": "a.mp4"}', "[1]", "{", '{"video": "a.mp4", "caption": " "}'):
        (tmp_path / "list.jsonl").write_text(json.dumps(rows[0]) + "\n" + line)
        with pytest.raises(InputError, match=r"in line 2 of '.*list\.jsonl'"):
            find_training_clips(tmp_path / "list.jsonl", 10)


def test_a_clip_without_a_caption_is_named(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", caption="")
    with pytest.raises(InputError, match=r"a caption for each of the 2 clips in .*found none for 1: write 'b\.txt'"):
        find_training_clips(tmp_path, 10)


def test_clips_that_are_short_or_damaged_are_named_together(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", frames=20)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    (tmp_path / "c.txt").write_text("broken")
    clips = find_training_clips(tmp_path, 10)
    named = r"2 of 3 clips cannot be used: 'b': expected 25 frames or more .*'c': cannot read"
    with pytest.raises(InputError, match=named):
        cache_latents(clips, KEYFRAMES, tmp_path / "cache", "movq", lambda x: x[:, :1, ::8, ::8])


def test_latents_are_encoded_once_and_anew_for_another_key(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b")
    encoded = []

    def cached(windows=KEYFRAMES, source="movq"):
        encoded.clear()

        def encode(pixels):
            encoded.append(len(pixels))
            return pixels[:, :, ::8, ::8]

        return cache_latents(find_training_clips(tmp_path, 10), windows, tmp_path / "cache", source, encode)

    paths = cached()
    # Both hold the same frames, so one file serves both.
    assert encoded == [3]
    assert load_file(paths[0])["keyframes"].shape == (1, 3, 3, 2, 2)
    assert cached() == paths
    assert encoded == []
    for other in (cached(source="other"), cached(Windows(2, {"keyframes": 2.0}, 256, 8))):
        assert encoded
        assert not set(other) & set(paths)
    write(tmp_path, "b", frames=41)
    assert cached()[0] == paths[0]
    assert encoded == [3]
    # Half a file, as a full disk leaves it elsewhere, is no cache.
    paths[0].write_bytes(paths[0].read_bytes()[:-10])
    assert cached()[0] == paths[0]
    assert encoded == [3]
    assert load_file(paths[0])["keyframes"].shape == (1, 3, 3, 2, 2)


def test_contexts_are_encoded_once_per_caption_and_encoder(tmp_path):
    seen = []

    def encode(caption):
        seen.append(caption)
        return torch.full((2, 4), float(len(caption)))

    found = cache_contexts(["one", "three", "one"], tmp_path, "t5", encode)
    assert seen == ["one", "three"]
    assert found["three"].tolist() == [[5.0] * 4] * 2
    cache_contexts(["one"], tmp_path, "t5", encode)
    assert len(seen) == 2
    cache_contexts(["one"], tmp_path, "another", encode)
    assert len(seen) == 3
