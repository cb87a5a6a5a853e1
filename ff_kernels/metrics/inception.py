"""Inception Score: how sure a classifier is of each clip and how evenly the clips use its classes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, ShapeError

SPLITS = 10


@dataclass(frozen=True)
class Score:
    """The score, 1..K: mean and standard deviation (divided by the count) over the splits."""

    mean: float
    deviation: float


class InceptionScore:
    """Inception Score of probabilities that arrive in chunks; only sums per split are kept.

    Item i belongs to split ``i % splits``, so the count need not be known before; give clips in random order, or in
    one that does not repeat with the splits.

    Args:
        splits: groups that are scored on their own, 1 or more; 10 in the published numbers.

    Raises:
        InputError: if ``splits`` is below 1.

    Source: Salimans et al. 2016, section 4; the paper measures it on 2,048 clips of 16 frames.
    """

    def __init__(self, splits: int = SPLITS) -> None:
        if splits < 1:
            raise InputError(f"expected 1 or more splits, got {splits}: give a positive number")
        self.splits, self.count = splits, 0
        self._sums: Tensor | None = None
        self._negative_entropies = torch.zeros(splits, dtype=torch.float64)
        self._counts = torch.zeros(splits, dtype=torch.float64)

    def add(self, probabilities: Tensor) -> "InceptionScore":
        """Take in class probabilities ``[N, K]``, rows that sum to one, and return self.

        Raises:
            ShapeError: if the shape is another.
            InputError: if rows are no probabilities.
        """
        if probabilities.ndim != 2 or (self._sums is not None and probabilities.shape[1] != self._sums.shape[1]):
            width = "K" if self._sums is None else self._sums.shape[1]
            raise ShapeError(
                f"expected probabilities [N, {width}], got {list(probabilities.shape)}: use one classifier"
            )
        rows = probabilities.detach().cpu().double()
        if not ((rows >= 0).all() and ((rows.sum(1) - 1).abs() <= 1e-3).all()):
            raise InputError(
                "expected rows of probabilities that sum to 1, got others, such as logits: end the network in a softmax"
            )
        if self._sums is None:
            self._sums = torch.zeros(self.splits, rows.shape[1], dtype=torch.float64)
        split = (self.count + torch.arange(len(rows))) % self.splits
        self._sums.index_add_(0, split, rows)
        self._negative_entropies.index_add_(0, split, torch.xlogy(rows, rows).sum(1))
        self._counts.index_add_(0, split, torch.ones(len(rows), dtype=torch.float64))
        self.count += len(rows)
        return self

    def score(self) -> Score:
        """Return the score so far.

        Raises:
            InputError: if there are fewer items than splits.
        """
        if self.count < self.splits:
            raise InputError(
                f"expected {self.splits} or more items for {self.splits} splits of the IS, got {self.count}"
                ": add clips or take fewer splits"
            )
        means = self._sums / self._counts[:, None]  # [splits, K]
        divergence = self._negative_entropies / self._counts - torch.xlogy(means, means).sum(1)
        scores = divergence.exp()
        return Score(scores.mean().item(), math.sqrt(scores.var(correction=0).item()))


def inception_score(probabilities: Tensor, splits: int = SPLITS) -> Score:
    """Return the Inception Score of ``[N, K]`` probabilities; arguments and errors as in ``InceptionScore``."""
    return InceptionScore(splits).add(probabilities).score()
