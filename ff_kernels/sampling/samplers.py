"""The step loop of both releases: DDPM ancestral sampling with clipping of the estimate."""

from collections.abc import Callable

import torch
from torch import Tensor

from .guidance import Predict
from .noise import Noise
from .schedule import Schedule

# Called after each step with its number from 1, the number of steps and the x0 estimate; True stops the run.
Callback = Callable[[int, int, Tensor], bool | None]
# Maps an x0 estimate into the range of latents.
Clip = Callable[[Tensor], Tensor]

THRESHOLD_V10 = 0.98


class Stopped(Exception):  # noqa: N818 (not an error: the caller asked for it)
    """A callback asked to stop; nothing is returned and nothing is left behind."""


def clip_to_quantile(denoised: Tensor, ratio: float = THRESHOLD_V10) -> Tensor:
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
    (paper.md, 5.3); golden ``v11_pipeline``.
    """
    return denoised.clamp(-1.0, 1.0)


def denoised_from_eps(x: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Return the x0 estimate of a noise prediction: ``(x - noise * eps) / signal``."""
    return (x - noise * eps) / signal


def denoised_from_v(x: Tensor, v: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Return the x0 estimate of a velocity prediction: ``signal * x - noise * v`` (paper section 4.3)."""
    return signal * x - noise * v


def sample_ddpm(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    noise: Noise,
    *,
    denoise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    clip: Clip,
    callback: Callback | None = None,
) -> Tensor:
    """Sample from noise to latents (Ho et al. 2020, algorithm 2, with a clipped estimate).

    Args:
        predict: guided network, ``(x, step) -> eps or v`` of the shape of x.
        x: ``[N, ...]`` standard normal start, float32; its device is where the loop runs.
        schedule: coefficients of every step.
        noise: source of the noise added after each step.
        denoise: ``denoised_from_eps`` or ``denoised_from_v``.
        clip: ``clip_to_quantile`` (release 1.0) or ``clip_to_range`` (1.1).
        callback: called after every step; returning True stops the run.

    Returns:
        ``[N, ...]`` float32 latents.

    Raises:
        Stopped: if the callback asked for it.

    Source: releases 1.0 and 1.1; golden ``v10_pipeline``, ``v11_pipeline``.
    """
    total = len(schedule)
    columns = (schedule.signal, schedule.noise, schedule.x0_gain, schedule.x_gain, schedule.noise_gain)
    table = torch.stack(columns, dim=1).to(x.device)
    for step in range(total):
        signal, level, x0_gain, x_gain, noise_gain = table[step]
        denoised = clip(denoise(x, predict(x, step).to(x.dtype), signal, level))
        x = x0_gain * denoised + x_gain * x
        if schedule.draws_noise[step]:
            x = x + noise_gain * noise.normal(x.shape).to(x)
        if callback is not None and callback(step + 1, total, denoised):
            raise Stopped(f"stopped after step {step + 1} of {total}")
    return x


def add_noise(latents: Tensor, noise: Tensor, schedule: Schedule, timestep: int) -> Tensor:
    """Return ``sqrt(a) * latents + sqrt(1 - a) * noise`` with a of a training timestep, 0 .. 999."""
    bar = schedule.alphas_cumprod[timestep].to(latents)
    return bar.sqrt() * latents + (1 - bar).sqrt() * noise
