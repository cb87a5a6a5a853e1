"""The step loop of both releases: DDPM ancestral sampling with clipping of the estimate."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import sample_step
from ..ops.step import Predicted, Threshold
from .guidance import Predict
from .noise import Noise
from .schedule import Schedule

# Called after each step with its number from 1, the number of steps and the x0 estimate; True stops the run.
Callback = Callable[[int, int, Tensor], bool | None]


class Stopped(Exception):  # noqa: N818 (not an error: the caller asked for it)
    """A callback asked to stop; nothing is returned and nothing is left behind."""


def sample_ddpm(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    noise: Noise,
    *,
    weights: tuple[float, ...] = (1.0,),
    predicted: Predicted = "eps",
    threshold: Threshold = "range",
    callback: Callback | None = None,
) -> Tensor:
    """Sample from noise to latents (Ho et al. 2020, algorithm 2, with a clipped estimate).

    Args:
        predict: network under K stacked guidance branches, ``(x, step) -> [K * N, ...]``.
        x: ``[N, ...]`` standard normal start, float32; its device is where the loop runs.
        schedule: coefficients of every step.
        noise: source of the noise added after each step.
        weights: K factors of the branches (``text_weights``, ``text_image_weights``).
        predicted: what the network predicts: "eps", "v", or "denoised", the x0 estimate itself.
        threshold: how the estimate is brought into range: "quantile" (release 1.0), "range" (1.1) or "none".
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
    given = {"weights": weights, "predicted": predicted, "threshold": threshold}
    for step in range(total):
        predictions = predict(x, step)
        fresh = noise.normal(x.shape).to(x) if schedule.draws_noise[step] else None
        x, denoised = sample_step(predictions, x, fresh, table[step], **given)
        if callback is not None and callback(step + 1, total, denoised):
            raise Stopped(f"stopped after step {step + 1} of {total}")
    return x


def add_noise(latents: Tensor, noise: Tensor, schedule: Schedule, timestep: int) -> Tensor:
    """Return ``sqrt(a) * latents + sqrt(1 - a) * noise`` with a of a training timestep, 0 .. 999."""
    bar = schedule.alphas_cumprod[timestep].to(latents)
    return bar.sqrt() * latents + (1 - bar).sqrt() * noise
