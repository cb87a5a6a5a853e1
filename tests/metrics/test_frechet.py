import numpy as np
import pytest
import torch

from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.metrics.frechet import FeatureStatistics, frechet_distance, fvd, video_statistics


def rows(seed, count=300, width=24):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width))


def root_by_newton(matrix):
    """Square root by the Denman-Beavers iteration: no eigenvalues, no symmetry used."""
    y, z = matrix, np.eye(len(matrix))
    for _ in range(60):
        y, z = (y + np.linalg.inv(z)) / 2, (z + np.linalg.inv(y)) / 2
    return y


def independent(a, b):
    a, b = a.numpy(), b.numpy()
    first, second = (np.cov(x, rowvar=False, bias=True) for x in (a, b))
    root = root_by_newton(first @ second)
    gap = a.mean(0) - b.mean(0)
    return gap @ gap + np.trace(first + second - 2 * root)


@pytest.mark.parametrize("seed", range(3))
def test_distance_agrees_with_an_independent_root(seed):
    a, b = rows(seed), rows(seed + 10, count=200)
    ours = frechet_distance(FeatureStatistics().add(a), FeatureStatistics().add(b))
    assert ours == pytest.approx(independent(a, b), rel=1e-6)
    eigenvalues = np.linalg.eigvals(np.cov(a.numpy(), rowvar=False) @ np.cov(b.numpy(), rowvar=False))
    traces = np.trace(np.cov(a.numpy(), rowvar=False)) + np.trace(np.cov(b.numpy(), rowvar=False))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + traces - 2 * np.sqrt(eigenvalues.real).sum()
    unbiased = frechet_distance(FeatureStatistics().add(a), FeatureStatistics().add(b), correction=1)
    assert unbiased == pytest.approx(expected, rel=1e-6)


def test_distance_of_equal_sets_is_zero_and_of_shifted_sets_the_shift():
    a = rows(0)
    statistics = FeatureStatistics().add(a)
    scale = statistics.covariance().trace().item()
    assert frechet_distance(statistics, statistics) <= 1e-12 * scale
    assert frechet_distance(statistics, FeatureStatistics().add(a + 2)) == pytest.approx(4 * a.shape[1], rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_fewer_vectors_than_dimensions_agree_with_the_small_form(count):
    a, b = rows(1, count=count, width=40), rows(2, count=5, width=40)
    ours = frechet_distance(FeatureStatistics().add(a), FeatureStatistics().add(b))
    # tr sqrt(C1 C2) is the nuclear norm of the small product of the centred rows.
    x, y = (v - v.mean(0) for v in (a, b))
    root = torch.linalg.matrix_norm(x @ y.T, "nuc") / (len(x) * len(y)) ** 0.5
    expected = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() / len(x) + y.square().sum() / len(y) - 2 * root
    assert ours == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("size", [1, 7, 100, 300])
def test_chunks_and_merging_agree_with_all_at_once_far_from_zero(size):
    data = rows(3) * 1e-3 + 1e5
    chunked = FeatureStatistics()
    for part in data.split(size):
        chunked.add(part)
    halves = FeatureStatistics().add(data[:120]).merge(FeatureStatistics().add(data[120:])).merge(FeatureStatistics())
    expected = torch.from_numpy(np.cov((data - 1e5).numpy(), rowvar=False))
    for statistics in (chunked, halves):
        assert statistics.count == 300
        assert torch.allclose(statistics.mean, data.mean(0), rtol=1e-14)
        assert torch.allclose(statistics.covariance(1), expected, rtol=1e-6, atol=1e-8 * expected.abs().max().item())


def brief(clips):
    return clips.mean((3, 4)).flatten(1)


def test_fvd_takes_the_first_frames_in_any_batch():
    torch.manual_seed(0)
    real, fake = [torch.rand(6, 3, 4, 4) for _ in range(9)], [torch.rand(5, 3, 8, 8) for _ in range(7)]
    whole = torch.stack([clip[:5].mean((2, 3)).T.flatten() for clip in real])
    statistics = video_statistics(iter(real), brief, frames=5, batch=4)
    assert statistics.count == 9
    assert torch.allclose(statistics.mean, whole.double().mean(0), atol=1e-6)
    assert fvd(real, fake, brief, frames=5) > fvd(real, real, brief, frames=5) == pytest.approx(0, abs=1e-9)
    assert video_statistics([real[0], fake[0], real[1]], brief, frames=5).count == 3


def test_wrong_features_are_named():
    with pytest.raises(ShapeError, match=r"\[N, 24\], got \[2, 3\]"):
        FeatureStatistics().add(rows(0)).add(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="width 24, got 3"):
        FeatureStatistics().add(rows(0)).merge(FeatureStatistics().add(torch.zeros(2, 3)))
    with pytest.raises(ShapeError, match="got 24 and 3"):
        frechet_distance(FeatureStatistics().add(rows(0)), FeatureStatistics().add(torch.zeros(2, 3)))
    with pytest.raises(InputError, match="NaN"):
        FeatureStatistics().add(torch.full((2, 3), torch.nan))
    with pytest.raises(InputError, match=r"1 or more feature vectors.*got 0"):
        frechet_distance(FeatureStatistics(), FeatureStatistics())
    with pytest.raises(ShapeError, match="16 or more frames in the clip, got 4"):
        fvd([torch.rand(4, 3, 4, 4)], [], brief)
