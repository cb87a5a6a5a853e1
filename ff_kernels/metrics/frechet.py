"""Frechet distance of two sets of feature vectors, from statistics that grow item by item; FVD of clips.

Mean and covariance are kept in float64 and merged chunk by chunk, so a set of any size takes ``D * D`` numbers.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from .features import Features
from .fidelity import check_clip

FVD_FRAMES = 16
FVD_CLIPS = 2048


class FeatureStatistics:
    """Count, mean and covariance of feature vectors, without keeping the vectors.

    Attributes:
        count: vectors so far.
        mean: ``[D]`` float64 on the CPU, None before the first vector.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def add(self, features: Tensor) -> "FeatureStatistics":
        """Take in a chunk and return self.

        Args:
            features: ``[N, D]``, N 0 or more, D as in the first chunk.

        Raises:
            ShapeError: if the shape is another.
            InputError: if a value is NaN or infinite.
        """
        if features.ndim != 2 or (self.mean is not None and features.shape[1] != len(self.mean)):
            width = "D" if self.mean is None else len(self.mean)
            raise ShapeError(f"expected features [N, {width}], got {list(features.shape)}: use one network for all")
        if not torch.isfinite(features).all():
            raise InputError("expected finite features, got NaN or infinity: check the network and its input")
        if len(features):
            chunk = features.detach().cpu().double()
            mean = chunk.mean(0)
            centred = chunk - mean
            self._merge(len(chunk), mean, centred.T @ centred)
        return self

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Take in the vectors that ``other`` has seen and return self.

        Raises:
            ShapeError: if the widths differ.
        """
        if other.mean is not None:
            if self.mean is not None and len(self.mean) != len(other.mean):
                raise ShapeError(
                    f"expected statistics of width {len(self.mean)}, got {len(other.mean)}: use one network for all"
                )
            self._merge(other.count, other.mean, other._scatter)
        return self

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        # Chan, Golub and LeVeque 1979: sums of squares around each chunk's own mean do not cancel.
        if self.mean is None:
            self.count, self.mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        total = self.count + count
        step = mean - self.mean
        self._scatter = self._scatter + scatter + torch.outer(step, step) * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def covariance(self, correction: int = 0) -> Tensor:
        """Return ``[D, D]`` float64, the scatter divided by ``count - correction``.

        Args:
            correction: 0 as the StyleGAN-V protocol divides, 1 for the unbiased estimate.

        Raises:
            InputError: if fewer than ``correction + 1`` vectors were taken in.
        """
        if self.count <= correction:
            raise InputError(
                f"expected {correction + 1} or more feature vectors for a covariance, got {self.count}: add clips"
            )
        return self._scatter / (self.count - correction)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics, *, correction: int = 0) -> float:
    """Return ``|m1 - m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2))``, 0 or more.

    With ``C1 = A A^T`` and ``C2 = B B^T`` the trace of the root is the sum of the singular values of ``A^T B``: the
    square roots of the eigenvalues of the symmetric product ``A^T C2 A``, without forming it. Covariances of lower
    rank than D, from fewer vectors than dimensions, are as good as others.

    Args:
        first: statistics of one set.
        second: statistics of the other, of the same width.
        correction: as in ``FeatureStatistics.covariance``.

    Raises:
        ShapeError: if the widths differ.
        InputError: if a set has no vectors, or only one with ``correction`` 1.

    Source: Frechet distance of two normal distributions, Dowson and Landau 1982.
    """
    covariances = first.covariance(correction), second.covariance(correction)
    if len(first.mean) != len(second.mean):
        raise ShapeError(
            f"expected two sets of one width, got {len(first.mean)} and {len(second.mean)}: use one network for both"
        )
    left, right = (_factor(covariance) for covariance in covariances)
    root = torch.linalg.svdvals(left.T @ right).sum() if left.shape[1] and right.shape[1] else 0.0
    traces = covariances[0].trace() + covariances[1].trace()
    distance = (first.mean - second.mean).square().sum() + traces - 2 * root
    # Rounding can leave a distance of equal sets just below zero.
    return max(0.0, float(distance))


def _factor(covariance: Tensor) -> Tensor:
    """Return A ``[D, rank]`` with ``A A^T`` the covariance; eigenvalues of rounding size are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    limit = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    kept = values > limit
    return vectors[:, kept] * values[kept].sqrt()


def video_statistics(
    clips: Iterable[Tensor], features: Features, *, frames: int = FVD_FRAMES, batch: int = 8
) -> FeatureStatistics:
    """Return the statistics of the first frames of each clip; only ``batch`` clips are held at a time.

    Args:
        clips: ``[T, 3, H, W]`` each, RGB in 0..1, T at least ``frames``; sizes may differ.
        features: clips ``[N, 3, frames, H, W]`` to ``[N, D]``.
        frames: frames taken from the start of each clip, 16 in the protocol.
        batch: clips per call of ``features``, fewer where sizes change.

    Raises:
        ShapeError: if a clip has another shape or too few frames.
        InputError: if pixels are outside 0..1 or features are not finite.
    """
    statistics, held = FeatureStatistics(), []
    for clip in clips:
        part = check_clip(clip, "clip", least=frames)[:frames].transpose(0, 1)
        if held and (len(held) == batch or held[0].shape != part.shape):
            statistics.add(features(torch.stack(held)))
            held = []
        held.append(part)
    return statistics.add(features(torch.stack(held))) if held else statistics


def fvd(real: Iterable[Tensor], fake: Iterable[Tensor], features: Features, *, frames: int = FVD_FRAMES) -> float:
    """Return the Frechet Video Distance of two sets of clips, 0 or more.

    The published numbers use 2,048 real and 2,048 generated clips of 16 frames and the I3D of
    ``features.load_i3d``; with fewer clips the estimate is larger, so compare only numbers of equal counts.

    Arguments and errors as in ``video_statistics``.

    Source: the StyleGAN-V protocol, which the paper names; covariances divided by the count, as there.
    """
    return frechet_distance(
        video_statistics(real, features, frames=frames), video_statistics(fake, features, frames=frames)
    )
