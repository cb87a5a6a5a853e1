"""One step of the sampler after the network has spoken: guidance, estimate, clipping, posterior, noise."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """What one step is made of, or with ``[S]`` columns every step of a run.

    With x the noisy sample, D its x0 estimate and z normal noise: ``x = signal * x0 + noise * eps`` holds before the
    step, and the step is ``x' = x0_gain * D + x_gain * x + noise_gain * z``.

    Attributes:
        signal: share of the clean sample, 0..1.
        noise: share of the noise, 0..1.
        x0_gain: gain of the estimate.
        x_gain: gain of the noisy sample.
        noise_gain: standard deviation of the fresh noise.
    """

    signal: Tensor
    noise: Tensor
    x0_gain: Tensor
    x_gain: Tensor
    noise_gain: Tensor

    def rows(self) -> Tensor:
        """Return ``[S, 5]``: what ``sample_step`` takes, a row per step."""
        return torch.stack(tuple(self), dim=1)


def denoised_from_eps(x: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Return the x0 estimate of a noise prediction: ``(x - noise * eps) / signal``."""
    return (x - noise * eps) / signal


def denoised_from_v(x: Tensor, v: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Return the x0 estimate of a velocity prediction: ``signal * x - noise * v`` (paper section 4.3)."""
    return signal * x - noise * v


def clip_to_quantile(denoised: Tensor, ratio: float) -> Tensor:
    """Clip each sample at the larger of 1 and its ``ratio`` quantile, then scale it back to -1..1.

    Args:
        denoised: ``[N, ...]``; the quantile is taken per sample: per frame for keyframes, per gap for
            interpolation.
        ratio: 0..1.

    Source: release 1.0 (dynamic thresholding of Imagen); golden ``v10_pipeline``.
    """
    limit = torch.quantile(denoised.flatten(1).abs(), ratio, dim=1).clamp(min=1.0)
    limit = limit.reshape(-1, *([1] * (denoised.ndim - 1)))
    return denoised.clamp(-limit, limit) / limit


def clip_to_range(denoised: Tensor) -> Tensor:
    """Clip to -1..1.

    Source: release 1.1 asks diffusers for a 0.995 quantile, whose divisor is limited to 1 and so never acts
    (models/RELEASES.md, "Threshold that never acts"); golden ``v11_pipeline``.
    """
    return denoised.clamp(-1.0, 1.0)


def mix_branches(branches: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Return the weighted sum of K branches ``[N, ...]`` in ``dtype``."""
    # The last branch first: the releases begin their three-branch sum with the unconditional one.
    *others, last = [weight * branch.to(dtype) for weight, branch in zip(weights, branches, strict=True)]
    return sum(reversed(others), last)


def sample_step(
    predictions: Tensor,
    x: Tensor,
    noise: Tensor | None,
    coefficients: Tensor,
    weights: list[float],
    predicted: str,
    threshold: str,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    """Formula of ``ops.sample_step``."""
    c = Coefficients(*coefficients)
    denoised = mix_branches(predictions.chunk(len(weights)), weights, x.dtype)
    if predicted != "denoised":
        denoised = (denoised_from_v if predicted == "v" else denoised_from_eps)(x, denoised, c.signal, c.noise)
    if threshold != "none":
        denoised = clip_to_quantile(denoised, ratio) if threshold == "quantile" else clip_to_range(denoised)
    following = c.x0_gain * denoised + c.x_gain * x
    return (following if noise is None else following + c.noise_gain * noise), denoised
