"""Noise schedules of both releases, reduced to one table of coefficients per run."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..ops import Coefficients

TRAIN_STEPS = 1000
# The largest beta of the cosine schedule; without it the last step would divide by zero.
MAX_BETA = 0.999
# diffusers' floor under the variance of a step (release 1.1 samples through it).
MIN_VARIANCE = 1e-20


@dataclass(frozen=True)
class Schedule:
    """All numbers of a run; entry i belongs to the i-th step taken, the noisiest first.

    With D the clipped x0 estimate of a step and z normal noise, every solver is one line:
    ``x' = x0_gain * D + x_gain * x + previous_gain * D of the step before + noise_gain * z``.

    Attributes:
        timesteps: ``[S]`` integers told to the network.
        coefficients: of every step, ``[S]`` each; ``signal`` is sqrt(a) and ``noise`` sqrt(1 - a) of a cumulative
            product a of 1 - beta.
        draws_noise: per step, whether noise is drawn at all (it moves the random stream).
        previous_gain: ``[S]`` gain of the step before's D, or None for a solver that looks at one step only.
    """

    timesteps: Tensor
    coefficients: Coefficients
    draws_noise: tuple[bool, ...]
    previous_gain: Tensor | None = None

    def __len__(self) -> int:
        return len(self.draws_noise)

    @property
    def sigmas(self) -> Tensor:
        """``[S + 1]`` float64 ratios noise / signal, closed by 0, for a host that counts in them."""
        signal = self.coefficients.signal.double()
        return torch.cat([(1 - signal.square()).sqrt() / signal, signal.new_zeros(1)])


@dataclass(frozen=True)
class PosteriorTables:
    """The 1.0 tables in training order, each ``[S]`` float32 (golden ``v10_schedule``)."""

    betas: Tensor
    alphas_cumprod: Tensor
    posterior_mean_coef_1: Tensor
    posterior_mean_coef_2: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor


def cosine_betas(steps: int) -> Tensor:
    """Return ``[steps]`` float32 betas of the squared-cosine schedule, capped at 0.999 (Nichol and Dhariwal)."""

    def alpha_bar(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor(
        [min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), MAX_BETA) for i in range(steps)],
        dtype=torch.float32,
    )


def posterior_tables_v10(steps: int) -> PosteriorTables:
    """Return the posterior tables of a native ``steps``-step cosine schedule (release 1.0).

    Raises:
        InputError: if ``steps`` is not within 1 .. 1000.
    """
    check_steps(steps)
    betas = cosine_betas(steps)
    alphas = 1 - betas
    bar = torch.cumprod(alphas, dim=0)
    previous = torch.cat([torch.ones(1), bar[:-1]])
    variance = betas * (1 - previous) / (1 - bar)
    # Release 1.0: the variance of step 0 is zero, its logarithm is taken from step 1 (golden v10_schedule).
    log_variance = torch.log(torch.cat([variance[1:2], variance[1:]])) if steps > 1 else torch.zeros(1)
    return PosteriorTables(
        betas,
        bar,
        previous.sqrt() * betas / (1 - bar),
        alphas.sqrt() * (1 - previous) / (1 - bar),
        variance,
        log_variance,
    )


def make_schedule_v10(steps: int = 50) -> Schedule:
    """Return the schedule of release 1.0: native cosine betas of ``steps`` steps, the last step first.

    Args:
        steps: 1 .. 1000; the releases use 50.

    Raises:
        InputError: if ``steps`` is out of range.

    Source: release 1.0, golden ``v10_schedule`` and ``v10_pipeline``.
    """
    tables = posterior_tables_v10(steps)
    # Release 1.0: the network is told i * (1000 // steps) although the noise at step i is that of the 1000-step
    # schedule one told step later (models/RELEASES.md, "The step told is not the step taken").
    timesteps = torch.arange(steps) * (TRAIN_STEPS // steps)
    noise_gain = torch.exp(0.5 * tables.posterior_log_variance)
    noise_gain[0] = 0.0
    columns = (
        tables.alphas_cumprod.sqrt(),
        (1 - tables.alphas_cumprod).sqrt(),
        tables.posterior_mean_coef_1,
        tables.posterior_mean_coef_2,
        noise_gain,
    )
    return Schedule(
        timesteps.flip(0),
        Coefficients(*(column.flip(0) for column in columns)),
        # Release 1.0: noise is drawn at the last step as well and then masked.
        draws_noise=(True,) * steps,
    )


def zero_terminal_betas(betas: Tensor) -> Tensor:
    """Shift and scale betas so that the last step holds no signal (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    bar = ((root - last) * (first / (first - last))).square()
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def alphas_cumprod_v11() -> Tensor:
    """Return the ``[1000]`` float32 cumulative products of release 1.1's training steps; the last is 0."""
    return torch.cumprod(1 - zero_terminal_betas(cosine_betas(TRAIN_STEPS)), dim=0)


def make_schedule_v11(steps: int, spacing: str) -> Schedule:
    """Return the schedule of release 1.1: 1000 training steps with zero terminal signal, of which some are taken.

    Args:
        steps: 1 .. 1000; the release takes 50 for pictures and keyframes and 10 for interpolation.
        spacing: "leading" (keyframes: 980, 960 .. 0) or "trailing" (interpolation: 999, 899 .. 99).

    Raises:
        InputError: if ``steps`` or ``spacing`` is not one of these.

    Source: release 1.1, golden ``v11_pipeline``.
    """
    check_steps(steps)
    if spacing == "leading":
        timesteps = (torch.arange(steps) * (TRAIN_STEPS // steps)).flip(0)
    elif spacing == "trailing":
        # NumPy's own steps decide which way near halves go: torch's differ at 50 of the 1000 counts (48, 96, ...).
        places = np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / steps).round()[:steps]
        timesteps = torch.from_numpy(places.astype(np.int64)) - 1
    else:
        raise InputError(f"expected the timestep spacing leading or trailing, got {spacing!r}: choose one of them")
    return _schedule_of_levels(timesteps, alphas_cumprod_v11()[timesteps], [bool(t > 0) for t in timesteps])


def make_schedule_from_sigmas(sigmas: Tensor) -> Schedule:
    """Return the DDPM schedule through given noise levels, for a host that hands out its own.

    Args:
        sigmas: ``[S + 1]`` falling ratios noise / signal; where the last is 0, as usual, the last step adds no noise.

    Returns:
        S steps, none for one sigma, after which sampling returns its start; ``timesteps`` counts them down, since the
        host tells its network the timestep itself.

    Raises:
        InputError: if there is no sigma.
    """
    if sigmas.ndim != 1 or not len(sigmas):
        raise InputError(f"expected one or more sigmas, got {list(sigmas.shape)}: ask the schedule for more steps")
    bars = 1 / (1 + sigmas.cpu().double().square())
    steps = len(bars) - 1
    counts = torch.arange(steps - 1, -1, -1)
    draws = [bool(sigma > 0) for sigma in sigmas[1:]]
    return _schedule_of_levels(counts, bars[:-1], draws, bars[-1:])


def _schedule_of_levels(timesteps: Tensor, now: Tensor, draws: list[bool], last: Tensor | None = None) -> Schedule:
    before = torch.cat([now[1:], torch.ones(1) if last is None else last])
    alpha = now / before
    variance = ((1 - before) / (1 - now) * (1 - alpha)).clamp(min=MIN_VARIANCE)
    coefficients = Coefficients(
        now.sqrt(),
        (1 - now).sqrt(),
        before.sqrt() * (1 - alpha) / (1 - now),
        alpha.sqrt() * (1 - before) / (1 - now),
        torch.exp(0.5 * torch.log(variance)),
    )
    return Schedule(timesteps, coefficients, draws_noise=tuple(draws))


def check_steps(steps: int) -> None:
    """Refuse a number of steps outside 1 .. 1000.

    Raises:
        InputError: naming it.
    """
    if not 1 <= steps <= TRAIN_STEPS:
        raise InputError(f"expected 1 to {TRAIN_STEPS} sampling steps, got {steps}: the releases use 50")
