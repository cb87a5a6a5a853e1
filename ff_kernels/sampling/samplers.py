"""The step loop of every solver, with clipping of the estimate."""

from collections.abc import Callable, Sequence

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


def sample_latents(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    noise: Noise,
    *,
    weights: tuple[float, ...] | Sequence[tuple[float, ...]] = (1.0,),
    predicted: Predicted = "eps",
    threshold: Threshold = "range",
    callback: Callback | None = None,
) -> Tensor:
    """Sample from noise to latents by the solver that made the schedule.

    A step of DDPM, as both releases sample (Ho et al. 2020, algorithm 2, with a clipped estimate D):
    ``x_t = alpha_t b / sigma_s^2 D + (alpha_s / alpha_t) (sigma_t^2 / sigma_s^2) x_s + sigma_t sqrt(b) / sigma_s z``
    with ``b = 1 - alpha_s^2 / alpha_t^2``; D is ``(x_s - sigma_s eps) / alpha_s`` or ``alpha_s x_s - sigma_s v``. The
    other solvers' formulas stand with them (``solvers``).

    Args:
        predict: network under K stacked guidance branches, ``(x, step) -> [K * N, ...]``.
        x: ``[N, ...]`` standard normal start, float32; its device is where the loop runs.
        schedule: coefficients of every step: a release's, or what a solver returns.
        noise: source of the noise added after each step.
        weights: K factors of the branches (``text_weights``, ``text_image_weights``), or such a tuple for every step,
            where K may change with the step.
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
    # A schedule of a host's noise levels is in float64, which not every device has.
    table, before = schedule.coefficients.rows().to(x.dtype).to(x.device), None
    previous_gain = None if schedule.previous_gain is None else schedule.previous_gain.tolist()
    each = weights if isinstance(weights[0], tuple) else [weights] * total
    for step in range(total):
        predictions = predict(x, step)
        fresh = noise.normal(x.shape).to(x) if schedule.draws_noise[step] else None
        x, denoised = sample_step(
            predictions, x, fresh, table[step], weights=each[step], predicted=predicted, threshold=threshold
        )
        if previous_gain is not None and previous_gain[step]:
            x = x + previous_gain[step] * before
        before = denoised
        if callback is not None and callback(step + 1, total, denoised):
            raise Stopped(f"stopped after step {step + 1} of {total}")
    return x


def add_noise(latents: Tensor, noise: Tensor, bars: Tensor, timestep: int) -> Tensor:
    """Return ``sqrt(a) * latents + sqrt(1 - a) * noise`` with a of a training timestep, an entry of ``bars``."""
    bar = bars[timestep].to(latents)
    return bar.sqrt() * latents + (1 - bar).sqrt() * noise
