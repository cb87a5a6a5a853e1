"""Noise schedules of both releases, reduced to one table of coefficients per run."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

TRAIN_STEPS = 1000
# The largest beta of the cosine schedule; without it the last step would divide by zero.
MAX_BETA = 0.999
# diffusers' floor under the variance of a step (release 1.1 samples through it).
MIN_VARIANCE = 1e-20


@dataclass(frozen=True)
class Schedule:
    """All numbers of a run; entry i belongs to the i-th step taken, the noisiest first.

    With ``a`` the cumulative product of 1 - beta, a step is ``mean = x0_gain * x0 + x_gain * x`` and adds
    ``noise_gain`` times normal noise where ``draws_noise`` (DDPM posterior; Ho et al. 2020, equation 7).

    Attributes:
        timesteps: ``[S]`` integers told to the network.
        signal: ``[S]`` sqrt(a).
        noise: ``[S]`` sqrt(1 - a).
        x0_gain: ``[S]``.
        x_gain: ``[S]``.
        noise_gain: ``[S]`` standard deviation of the added noise.
        draws_noise: per step, whether noise is drawn at all (it moves the random stream).
        betas: ``[1000]`` (1.1) or ``[S]`` (1.0), in training order.
        alphas_cumprod: as ``betas``.
    """

    timesteps: Tensor
    signal: Tensor
    noise: Tensor
    x0_gain: Tensor
    x_gain: Tensor
    noise_gain: Tensor
    draws_noise: tuple[bool, ...]
    betas: Tensor
    alphas_cumprod: Tensor

    def __len__(self) -> int:
        return len(self.draws_noise)

    @property
    def sigmas(self) -> Tensor:
        """``[S + 1]`` float64 ratios noise / signal, closed by 0, for a host that counts in them."""
        signal = self.signal.double()
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
    _check_steps(steps)
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
    return Schedule(
        *(
            t.flip(0)
            for t in (
                timesteps,
                tables.alphas_cumprod.sqrt(),
                (1 - tables.alphas_cumprod).sqrt(),
                tables.posterior_mean_coef_1,
                tables.posterior_mean_coef_2,
                noise_gain,
            )
        ),
        # Release 1.0: noise is drawn at the last step as well and then masked.
        draws_noise=(True,) * steps,
        betas=tables.betas,
        alphas_cumprod=tables.alphas_cumprod,
    )


def zero_terminal_betas(betas: Tensor) -> Tensor:
    """Shift and scale betas so that the last step holds no signal (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    bar = ((root - last) * (first / (first - last))).square()
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def make_schedule_v11(steps: int, spacing: str) -> Schedule:
    """Return the schedule of release 1.1: 1000 training steps with zero terminal signal, of which some are taken.

    Args:
        steps: 1 .. 1000; the release takes 50 for pictures and keyframes and 10 for interpolation.
        spacing: "leading" (keyframes: 980, 960 .. 0) or "trailing" (interpolation: 999, 899 .. 99).

    Raises:
        InputError: if ``steps`` or ``spacing`` is not one of these.

    Source: release 1.1, golden ``v11_pipeline``.
    """
    _check_steps(steps)
    if spacing == "leading":
        timesteps = (torch.arange(steps) * (TRAIN_STEPS // steps)).flip(0)
    elif spacing == "trailing":
        # NumPy's own steps decide which way near halves go: torch's differ at 50 of the 1000 counts (48, 96, ...).
        places = np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / steps).round()[:steps]
        timesteps = torch.from_numpy(places.astype(np.int64)) - 1
    else:
        raise InputError(f"expected the timestep spacing leading or trailing, got {spacing!r}: choose one of them")
    betas = zero_terminal_betas(cosine_betas(TRAIN_STEPS))
    bar = torch.cumprod(1 - betas, dim=0)
    return _schedule_of_levels(timesteps, bar[timesteps], betas, bar, [bool(t > 0) for t in timesteps])


def make_schedule_from_sigmas(sigmas: Tensor) -> Schedule:
    """Return the DDPM schedule through given noise levels, for a host that hands out its own.

    Args:
        sigmas: ``[S + 1]`` falling ratios noise / signal; where the last is 0, as usual, the last step adds no noise.

    Returns:
        S steps; ``timesteps`` counts them down, since the host tells its network the timestep itself.

    Raises:
        InputError: if there is no step.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError(f"expected two or more sigmas, got {list(sigmas.shape)}: ask the schedule for more steps")
    bars = 1 / (1 + sigmas.cpu().double().square())
    steps = len(bars) - 1
    counts = torch.arange(steps - 1, -1, -1)
    draws = [bool(sigma > 0) for sigma in sigmas[1:]]
    return _schedule_of_levels(counts, bars[:-1], 1 - bars[:-1] / bars[1:], bars[:-1], draws, bars[-1:])


def _schedule_of_levels(
    timesteps: Tensor, now: Tensor, betas: Tensor, bars: Tensor, draws: list[bool], last: Tensor | None = None
) -> Schedule:
    before = torch.cat([now[1:], torch.ones(1) if last is None else last])
    alpha = now / before
    variance = ((1 - before) / (1 - now) * (1 - alpha)).clamp(min=MIN_VARIANCE)
    return Schedule(
        timesteps,
        now.sqrt(),
        (1 - now).sqrt(),
        before.sqrt() * (1 - alpha) / (1 - now),
        alpha.sqrt() * (1 - before) / (1 - now),
        torch.exp(0.5 * torch.log(variance)),
        draws_noise=tuple(draws),
        betas=betas,
        alphas_cumprod=bars,
    )


def told_sigmas(family: str, steps: int = 50) -> Tensor:
    """Return the noise level of every timestep that a ``steps``-step keyframe run can tell the network.

    A host with samplers of its own needs the levels between the steps as well. The table ends at the noisiest
    step the release takes: beyond it an eps-prediction has no signal left to divide by.

    Args:
        family: "1.0" or "1.1".
        steps: steps of the run whose own timesteps are met exactly, a divisor of 1000.

    Returns:
        ``[1001 - 1000 // steps]`` float64 ratios noise / signal, rising; entry t belongs to timestep t.
    """
    _check_steps(steps)
    stride = TRAIN_STEPS // steps
    if family == "1.1":
        betas = zero_terminal_betas(cosine_betas(TRAIN_STEPS))
        bars = torch.cumprod(1 - betas.double(), dim=0)[: TRAIN_STEPS - stride + 1]
        return ((1 - bars) / bars).sqrt()
    # Release 1.0: timestep i * stride has the noise of the native table, in between its logarithm is interpolated.
    bars = torch.cumprod(1 - cosine_betas(steps).double(), dim=0)
    log_sigma = 0.5 * torch.log((1 - bars) / bars)
    places = torch.arange(TRAIN_STEPS - stride + 1, dtype=torch.float64) / stride
    low = places.floor().long()
    high = (low + 1).clamp(max=steps - 1)
    return torch.exp(torch.lerp(log_sigma[low], log_sigma[high], places - low))


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= TRAIN_STEPS:
        raise InputError(f"expected 1 to {TRAIN_STEPS} sampling steps, got {steps}: the releases use 50")
