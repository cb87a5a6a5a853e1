import math

import pytest
import torch

from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.metrics.fidelity import check_clip, check_pair, fidelity_curves, mse, psnr, ssim


def clip(seed=0, frames=3, height=16, width=19, dtype=torch.float64):
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_mse_and_psnr_of_a_known_offset():
    a = clip() * 0.5
    assert torch.allclose(mse(a, a + 0.1), torch.full((3,), 0.01, dtype=torch.float64))
    assert torch.allclose(psnr(a, a + 0.1), torch.full((3,), 20.0, dtype=torch.float64))


def test_psnr_of_equal_frames_is_infinite_and_of_others_is_not():
    a, b = clip(), clip()
    b[1] = 1 - b[1]
    assert [math.isinf(v) for v in psnr(a, b).tolist()] == [True, False, True]


def test_ssim_agrees_with_the_definition_written_out():
    a, b = clip(1, frames=2), clip(2, frames=2)
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps) / taps.sum() ** 2
    expected = []
    for x, y in zip(a, b, strict=True):
        values = []
        for c in range(3):
            for i in range(16 - 10):
                for j in range(19 - 10):
                    p, q = x[c, i : i + 11, j : j + 11], y[c, i : i + 11, j : j + 11]
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
        expected.append(torch.stack(values).mean())
    assert torch.allclose(ssim(a, b), torch.stack(expected), atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_ssim_of_equal_flat_frames_is_one(level):
    a = torch.full((1, 3, 12, 12), level)
    assert ssim(a, a).item() == pytest.approx(1, abs=1e-6)


def test_curves_have_one_value_per_frame():
    curves = fidelity_curves(clip(), clip(1))
    assert list(curves) == ["PSNR", "SSIM", "MSE"]
    assert all(curve.shape == (3,) for curve in curves.values())


def test_half_precision_is_computed_in_single():
    assert check_clip(clip(dtype=torch.float16)).dtype == torch.float32
    assert check_pair(clip(dtype=torch.float16), clip())[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("frames", "error", "match"),
    [
        (torch.rand(2, 16, 16, 3), ShapeError, r"got \[2, 16, 16, 3\]"),
        (torch.rand(0, 3, 16, 16), ShapeError, r"got \[0, 3, 16, 16\]"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), InputError, r"got torch\.uint8"),
        (torch.full((2, 3, 16, 16), 255.0), InputError, r"got 255\.\.255"),
        (torch.full((2, 3, 16, 16), torch.nan), InputError, r"got nan"),
    ],
    ids=["channels_last", "no_frames", "bytes", "range_255", "nan"],
)
def test_wrong_clips_are_named(frames, error, match):
    with pytest.raises(error, match=match):
        check_clip(frames)


def test_unequal_shapes_and_small_frames_are_named():
    with pytest.raises(ShapeError, match=r"\[3, 3, 16, 19\], got \[2, 3, 16, 19\]"):
        mse(clip(), clip(frames=2))
    with pytest.raises(ShapeError, match="got 19 x 10"):
        ssim(clip(height=10), clip(height=10))
