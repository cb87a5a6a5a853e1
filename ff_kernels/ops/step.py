"""One step of the sampler after the network has spoken."""

from typing import Literal

import torch
from torch import Tensor

from .eager import step as formulas
from .eager.step import Coefficients
from .registry import Cost, Operation, bytes_of

__all__ = ["THRESHOLD_V10", "Coefficients", "Predicted", "Threshold", "sample_step"]

Predicted = Literal["eps", "v", "denoised"]
Threshold = Literal["quantile", "range", "none"]
# Release 1.0; its share of values inside the limit.
THRESHOLD_V10 = 0.98


def _fake(predictions: Tensor, x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _cost(predictions: Tensor, x: Tensor, noise: Tensor | None, *_: object, out: tuple[Tensor, Tensor]) -> Cost:
    """Count the estimate, the selection of the quantile (a few reads that stay in cache) and the step."""
    return Cost(1, 0, bytes_of(predictions, x, noise, *out))


_sample_step = Operation(
    "sample_step",
    "(Tensor predictions, Tensor x, Tensor? noise, Tensor coefficients, float[] weights, str predicted, str threshold,"
    " float ratio) -> (Tensor, Tensor)",
    _fake,
    _cost,
    formulas.sample_step,
)


def sample_step(
    predictions: Tensor,
    x: Tensor,
    noise: Tensor | None,
    coefficients: Tensor,
    *,
    weights: tuple[float, ...] = (1.0,),
    predicted: Predicted = "eps",
    threshold: Threshold = "range",
    ratio: float = THRESHOLD_V10,
) -> tuple[Tensor, Tensor]:
    """Mix the guidance branches, estimate x0, clip it, and step: one pass over the samples.

    Args:
        predictions: ``[K * N, ...]`` of K stacked guidance branches, any floating-point dtype.
        x: ``[N, ...]`` float32 noisy samples.
        noise: ``[N, ...]`` added after the step, or None where the schedule adds none.
        coefficients: ``[5]`` in the order of ``Coefficients``, float32.
        weights: K factors of the branches, in their order.
        predicted: what the predictions are: "eps", "v", or "denoised", the x0 estimate itself.
        threshold: "quantile" (release 1.0), "range" (release 1.1) or "none".
        ratio: quantile of dynamic thresholding, 0..1.

    Returns:
        The next samples and the clipped x0 estimate, ``[N, ...]`` float32 each.

    Source: releases 1.0 and 1.1; golden ``v10_pipeline``, ``v11_pipeline``.
    """
    return _sample_step(predictions, x, noise, coefficients, list(weights), predicted, threshold, ratio)
