import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.sampling.gaps import frames_after
from fusionframes.ff_kernels.stages.masking import fill_missing, find_missing_runs, frame_mask, passes_for


def linear(keyframes, passes):
    """Exact linear interpolation: made frames then tell their own time."""
    total = frames_after(keyframes.shape[1], passes)
    place = torch.linspace(0, keyframes.shape[1] - 1, total, dtype=keyframes.dtype)
    low = place.floor().long().clamp(max=keyframes.shape[1] - 2)
    share = (place - low)[None, :, None, None, None]
    return keyframes[:, low] * (1 - share) + keyframes[:, low + 1] * share


@st.composite
def masks(draw):
    inner = draw(st.lists(st.booleans(), min_size=1, max_size=40))
    return torch.tensor([False, *inner, False])


@given(masks())
def test_fill_missing_keeps_known_frames_and_takes_the_nearest_time(missing):
    T = len(missing)
    clip = torch.arange(T, dtype=torch.float64)[None, :, None, None, None].expand(2, T, 1, 2, 2).clone()
    truth = clip.clone()
    clip[:, missing] = torch.nan
    if not missing.any():
        with pytest.raises(InputError, match="marks none"):
            fill_missing(clip, missing, linear)
        return
    out = fill_missing(clip, missing, linear)
    assert torch.equal(out[:, ~missing], truth[:, ~missing])
    for run in find_missing_runs(missing):
        step = (run.inner + 1) / 4**run.passes
        places = [place for place, _ in run.picks()]
        assert (out[:, places] - truth[:, places]).abs().max() <= step / 2 + 1e-9
        assert len({frame for _, frame in run.picks()}) == len(places)


def test_fill_missing_with_equal_gaps_is_one_interpolation_of_the_known_frames():
    missing = torch.ones(13, dtype=torch.bool)
    missing[::4] = False
    (run,) = find_missing_runs(missing)
    assert (run.known, run.inner, run.passes, run.frames) == ((0, 4, 8, 12), 3, 1, 13)


@pytest.mark.parametrize(("inner", "passes"), [(1, 1), (3, 1), (4, 2), (15, 2), (16, 3), (63, 3), (64, 4)])
def test_passes_for_gap_returns_the_fewest(inner, passes):
    assert passes_for(inner) == passes


@pytest.mark.parametrize("mask", [[1, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]])
def test_missing_end_raises(mask):
    with pytest.raises(InputError, match=f"of {len(mask)}: gaps need a known frame on both sides"):
        find_missing_runs(torch.tensor(mask, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(1, 1, 5, 2, 2), (2, 1, 5, 2, 2), (1, 5, 2, 2), (5, 1, 2, 2), (5, 2, 2), (5,)])
def test_frame_mask_reads_every_layout(shape):
    mask = torch.zeros(5)
    mask[2] = 1
    full = mask
    if len(shape) == 5:
        full = mask[None, None, :, None, None].expand(shape)
    elif len(shape) > 1:
        full = mask[:, None, None].expand(5, 2, 2).reshape(shape)
    assert frame_mask(full, 5).tolist() == [False, False, True, False, False]


def test_mask_of_another_length_raises():
    with pytest.raises(ShapeError, match=r"a mask of 5 frames.*got 4"):
        frame_mask(torch.zeros(4, 2, 2), 5)
    with pytest.raises(ShapeError, match="each of the 5 frames"):
        fill_missing(torch.zeros(1, 5, 1, 1, 1), torch.zeros(4, dtype=torch.bool), linear)
