import pytest
import torch
from torch.nn import functional as F

from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.metrics.consistency import (
    TemporalConsistency,
    brightness_flicker,
    neighbour_mse,
    pixel_flicker,
    temporal_curves,
    warping_error,
)
from fusionframes.ff_kernels.metrics.flow import block_flow, brightness, warp


def mean_gap(a, b):
    return (a - b).abs().mean((1, 2, 3))


@pytest.fixture
def moving():
    """A soft texture that moves 3 pixels right and 2 up per frame."""
    noise = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    world = F.interpolate(noise, scale_factor=4, mode="bilinear")[0].clamp(0, 1)
    return torch.stack([world[:, 30 + 2 * t : 78 + 2 * t, 40 - 3 * t : 83 - 3 * t] for t in range(6)])


@pytest.fixture
def noise():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_still_clip_is_zero_in_every_measure(noise):
    curves = temporal_curves(noise[:1].expand(5, -1, -1, -1), mean_gap)
    assert [len(curve) for curve in curves.values()] == [4, 4, 4, 3, 3]
    assert all((curve == 0).all() for curve in curves.values())


def test_noise_is_large(noise):
    # Two uniform values differ by 1/6 in the mean square; the fitted motion takes only a part of it.
    assert neighbour_mse(noise).mean().item() == pytest.approx(1 / 6, rel=0.05)
    assert warping_error(noise).mean() > 0.5 / 6
    assert pixel_flicker(noise).mean() > 0.1


def test_moved_clip_has_a_warping_error_far_below_its_neighbour_error(moving):
    assert warping_error(moving).mean() < 0.1 * neighbour_mse(moving).mean()


def test_flow_finds_a_whole_translation_inside_the_frame(moving):
    flow = block_flow(moving)
    assert flow.shape == (5, 2, 48, 43)
    inside = flow[:, :, 8:40, 8:40]
    assert (inside[:, 0] == -3).float().mean() > 0.95
    assert (inside[:, 1] == 2).float().mean() > 0.95
    warped = warp(moving[:-1], flow)
    assert torch.equal(warped[..., 16:24, 16:24], moving[1:, ..., 16:24, 16:24])


@pytest.mark.parametrize("size", [(16, 16), (19, 13), (5, 7)], ids=["whole_blocks", "ragged", "below_a_block"])
def test_flow_is_that_of_a_full_search_written_out(size):
    H, W = size
    frames = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    luma = brightness(frames)
    flow = block_flow(frames, block_px=8, radius_px=3)
    ys, xs = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    for top in range(0, H, 8):
        for left in range(0, W, 8):
            y, x = ys[top : top + 8, left : left + 8], xs[top : top + 8, left : left + 8]
            errors = {
                (dx, dy): (luma[1][y, x] - luma[0][(y + dy).clamp(0, H - 1), (x + dx).clamp(0, W - 1)]).square().sum()
                for dx in range(-3, 4)
                for dy in range(-3, 4)
            }
            best = min(errors, key=errors.get)
            assert flow[0, :, top, left].tolist() == list(best)
            assert (flow[0, :, y, x].flatten(1) == torch.tensor(best)[:, None]).all()


def test_flat_frames_do_not_move():
    assert (block_flow(torch.full((2, 3, 9, 9), 0.3)) == 0).all()


def test_warp_repeats_the_border():
    frames = torch.arange(4.0).reshape(1, 1, 1, 4)
    flow = torch.zeros(1, 2, 1, 4, dtype=torch.int64)
    flow[:, 0] = -2
    assert warp(frames, flow).flatten().tolist() == [0, 0, 0, 1]


def test_even_fading_does_not_flicker_and_blinking_does():
    fade = torch.linspace(0, 1, 5).reshape(5, 1, 1, 1).expand(5, 3, 4, 4)
    assert brightness_flicker(fade).max() < 1e-6
    blink = torch.tensor([0.0, 1, 0, 1]).reshape(4, 1, 1, 1).expand(4, 3, 4, 4)
    assert torch.allclose(brightness_flicker(blink), torch.full((2,), 2.0))
    assert torch.allclose(pixel_flicker(blink), torch.full((2,), 2.0))
    assert brightness(torch.ones(1, 3, 2, 2)).allclose(torch.ones(1, 2, 2))


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 4], [5, 1], [3, 3]])
def test_chunks_agree_with_the_whole_clip(moving, sizes):
    chunked = TemporalConsistency(mean_gap)
    for part in moving.split(sizes):
        chunked.add(part)
    whole = temporal_curves(moving, mean_gap)
    for name, curve in chunked.curves().items():
        assert torch.allclose(curve, whole[name], atol=1e-7), name


def test_wrong_clips_are_named(noise):
    with pytest.raises(ShapeError, match=r"3 or more frames.*got 2"):
        temporal_curves(noise[:2])
    with pytest.raises(ShapeError, match="2 or more frames in the clip, got 1"):
        neighbour_mse(noise[:1])
    with pytest.raises(ShapeError, match=r"\[3, 32, 32\], got \[3, 32, 30\]"):
        TemporalConsistency().add(noise).add(noise[..., :30])
    with pytest.raises(InputError, match="got 0 and 8"):
        block_flow(noise, block_px=0)
    with pytest.raises(ShapeError, match=r"flow of \[1, 2, 32, 32\]"):
        warp(noise[:1], torch.zeros(1, 2, 3, 3, dtype=torch.int64))
