"""Confidence intervals without a model of the errors: the spread of a statistic over resampled items.

Percentile bootstrap (Efron 1979) with a seeded generator. It is too narrow for a few items: 95 % intervals of the mean
of 10 normal values hold the truth in about 90 % of cases.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, ShapeError

RESAMPLES = 2000
LEVEL = 0.95
# Numbers of resampled items drawn at a time.
_BLOCK = 2**20


class Interval(NamedTuple):
    """Lower and upper end, in the unit of the statistic."""

    low: float
    high: float


def _check(count: int, level: float, resamples: int) -> None:
    if count < 2:
        raise InputError(f"expected 2 or more items for an interval, got {count}: measure more items")
    if not 0 < level < 1:
        raise InputError(f"expected a level between 0 and 1, got {level}: 0.95 is usual")
    if resamples < 1:
        raise InputError(f"expected 1 or more resamples, got {resamples}: 2000 is usual")


def _interval(values: Tensor, level: float) -> Interval:
    ends = values.double().quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(*ends.tolist())


def bootstrap_mean(values: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the interval of the mean of per-item values.

    Args:
        values: ``[N]``, finite, N 2 or more.
        level: share of cases in which the interval should hold the truth, between 0 and 1.
        resamples: how often N items are drawn with replacement.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ShapeError: if ``values`` has another shape.
        InputError: if values are not finite or too few, or an option is out of range.
    """
    if values.ndim != 1:
        raise ShapeError(f"expected values [N], got {list(values.shape)}: give one value per item")
    _check(len(values), level, resamples)
    if not torch.isfinite(values).all():
        raise InputError("expected finite values for an interval, got NaN or infinity: leave them out and say so")
    values, generator = values.detach().cpu().double(), torch.Generator().manual_seed(seed)
    rows, means = max(1, _BLOCK // len(values)), []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(values))
        means.append(values[torch.randint(len(values), shape, generator=generator)].mean(1))
    return _interval(torch.cat(means), level)


def bootstrap(
    items: Tensor, statistic: Callable[[Tensor], float], *, level: float = LEVEL, resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """Return the interval of any statistic over items, called once per resample.

    Not for statistics that repeated items bias, such as a Frechet distance: its resamples lie above its value.

    Args:
        items: ``[N, ...]``, N 2 or more.
        statistic: ``[N, ...]`` to a finite number.
        level: as in ``bootstrap_mean``.
        resamples: as in ``bootstrap_mean``.
        seed: as in ``bootstrap_mean``.

    Raises:
        InputError: if there are too few items, an option is out of range or the statistic is not finite.
    """
    _check(len(items), level, resamples)
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randint(len(items), (len(items),), generator=generator) for _ in range(resamples))
    values = torch.tensor([float(statistic(items[draw.to(items.device)])) for draw in draws], dtype=torch.float64)
    if not torch.isfinite(values).all():
        raise InputError("expected a finite statistic of every resample, got NaN or infinity: choose another statistic")
    return _interval(values, level)
