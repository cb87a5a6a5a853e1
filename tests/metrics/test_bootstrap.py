import pytest
import torch

from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.metrics.bootstrap import bootstrap, bootstrap_mean


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    data = torch.randn(600, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    ends = [bootstrap_mean(row, resamples=400, seed=i) for i, row in enumerate(data)]
    # Nominal 0.95; percentile intervals of 40 values are a little narrow, and 600 trials have a deviation of 0.009.
    assert 0.915 <= sum(low <= 7 <= high for low, high in ends) / 600 <= 0.97
    narrow = [bootstrap_mean(row, resamples=400, seed=i, level=0.5) for i, row in enumerate(data)]
    assert 0.43 <= sum(low <= 7 <= high for low, high in narrow) / 600 <= 0.56


def test_width_is_that_of_the_normal_interval():
    values = torch.randn(500, generator=torch.Generator().manual_seed(1))
    low, high = bootstrap_mean(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 500**0.5, rel=0.06)


def test_general_statistic_agrees_with_the_mean_and_takes_items_of_any_shape():
    values = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    low, high = bootstrap_mean(values)
    general = bootstrap(values[:, None].expand(50, 3), lambda x: x.mean().item())
    assert general == pytest.approx((low, high), abs=0.01)
    assert bootstrap(values, lambda x: x.median().item(), resamples=200) == bootstrap(
        values, lambda x: x.median().item(), resamples=200
    )


def test_same_seed_same_interval_and_equal_values_no_width():
    values = torch.arange(10.0)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    assert bootstrap_mean(torch.ones(5)) == (1, 1)


def test_wrong_input_is_named():
    with pytest.raises(InputError, match=r"2 or more items.*got 1"):
        bootstrap_mean(torch.ones(1))
    with pytest.raises(InputError, match=r"got 95"):
        bootstrap_mean(torch.ones(3), level=95)
    with pytest.raises(InputError, match="1 or more resamples, got 0"):
        bootstrap_mean(torch.ones(3), resamples=0)
    with pytest.raises(InputError, match="finite values"):
        bootstrap_mean(torch.tensor([1, torch.inf]))
    with pytest.raises(InputError, match="finite statistic"):
        bootstrap(torch.ones(3), lambda x: float("nan"), resamples=2)
    with pytest.raises(ShapeError, match=r"got \[2, 2\]"):
        bootstrap_mean(torch.ones(2, 2))
