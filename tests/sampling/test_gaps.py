import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import draw

from fusionframes.ff_kernels.errors import ShapeError
from fusionframes.ff_kernels.sampling.gaps import frames_after, join_gaps, split_gaps


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 7), st.integers(1, 4))
def test_join_gaps_interleaves_three_frames_and_keeps_keyframes_bit_for_bit(clips, frames, channels):
    keyframes = draw(clips, frames, channels, 2, 3)
    gaps = draw(clips * (frames - 1), 3 * channels, 2, 3, seed=1)
    video = join_gaps(keyframes, gaps)
    assert video.shape == (clips, 4 * frames - 3, channels, 2, 3)
    assert torch.equal(video[:, ::4], keyframes)
    for clip in range(clips):
        for gap in range(frames - 1):
            inner = gaps[clip * (frames - 1) + gap].reshape(3, channels, 2, 3)
            assert torch.equal(video[clip, 4 * gap + 1 : 4 * gap + 4], inner)


@given(st.integers(1, 3), st.integers(2, 6))
def test_split_gaps_gives_neighbours_of_the_same_clip(clips, frames):
    keyframes = torch.arange(clips * frames).reshape(clips, frames, 1, 1, 1).float()
    left, right = split_gaps(keyframes)
    assert len(left) == clips * (frames - 1)
    assert (right - left == 1).all()


@given(st.integers(2, 30), st.integers(0, 3))
def test_frames_after_matches_the_join(frames, passes):
    expected = frames
    for _ in range(passes):
        expected = 4 * expected - 3
    assert frames_after(frames, passes) == expected


def test_releases_frame_counts():
    assert [frames_after(15, p) for p in range(3)] == [15, 57, 225]
    assert [frames_after(12, p) for p in range(3)] == [12, 45, 177]


def test_split_gaps_single_keyframe_is_named():
    with pytest.raises(ShapeError, match=r"\[1, 1, 4, 2, 2\]"):
        split_gaps(draw(1, 1, 4, 2, 2))


def test_join_gaps_foreign_gaps_are_named():
    with pytest.raises(ShapeError, match=r"\[3, 12, 2, 2\]"):
        join_gaps(draw(1, 3, 4, 2, 2), draw(3, 12, 2, 2))
