"""Noise levels beside the timesteps that a network learnt them under, and which of them a run takes.

Release 1.0 makes the levels of a run with its own number of steps and tells times that belong to another number:
1000 / steps - 1 of 1000 too low. With 50 steps that is little; with 10 the network is told 880 where the noise is that
of 979, and falls apart. Here a level is only ever taken together with its own timestep.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from .schedule import TRAIN_STEPS, check_steps, cosine_betas, zero_terminal_betas

# How the levels of a run are spread: evenly over the timesteps, or as Karras et al. 2022 (equation 5, rho = 7).
Spacing = Literal["even", "karras"]
SPACINGS = ("even", "karras")
RHO = 7.0
# The noisiest step of release 1.1 that a noise prediction is asked for: beyond it no signal is left to divide by.
LAST_STEP_V11 = 980


@dataclass(frozen=True)
class Levels:
    """What a network was told beside each noise level.

    Attributes:
        sigmas: ``[K]`` float64 ratios noise / signal, rising, at the timesteps 0 .. K - 1.
        offset: timestep t belongs to the share ``(t + offset) / 1000`` of the way from clip to noise.
    """

    sigmas: Tensor
    offset: int

    def bars_of(self, timesteps: Tensor) -> Tensor:
        """Return what solvers take: shares of the signal's variance ``[S + 1]`` at ``[S]`` timesteps, closed by 1."""
        bars = 1 / (1 + self.sigmas[timesteps].square())
        return torch.cat([bars, bars.new_ones(1)])

    def timestep_at(self, share: float) -> int:
        """Return the timestep at a share 0..1 of the way from clip to noise, the nearest that is known."""
        return min(max(round(TRAIN_STEPS * share) - self.offset, 0), len(self.sigmas) - 1)


def trained_levels(family: str, offset: int = 1, *, to_the_end: bool = False) -> Levels:
    """Return the pairs of noise level and timestep of a network.

    Args:
        family: "1.0" or "1.1".
        offset: release 1.0: how far the timestep lies below the share of the noise process, in steps of 1000. 1 is what
            training on 1000 steps gives; 20 is what the release tells in a run of 50 steps, and the demo's own pairs.
            Release 1.1 trains on 1000 steps, whatever is given.
        to_the_end: release 1.1: go on to timestep 999, which holds no signal; for a network that predicts v.

    Returns:
        ``1001 - offset`` levels (1.0), every ``offset``-th of which is that of the native table, or 981 or 1000 (1.1).

    Raises:
        InputError: if ``offset`` is not within 1 .. 1000.
    """
    if family == "1.1":
        bars = torch.cumprod(1 - zero_terminal_betas(cosine_betas(TRAIN_STEPS)).double(), dim=0)
        bars = bars if to_the_end else bars[: LAST_STEP_V11 + 1]
        return Levels(((1 - bars) / bars).sqrt(), 1)
    if not 1 <= offset <= TRAIN_STEPS:
        raise InputError(f"expected a timestep offset of 1 to 1000, got {offset}: release 1.0 learnt with 1")
    # Between two steps of the native table the logarithm of noise / signal is interpolated.
    native = torch.cumprod(1 - cosine_betas(TRAIN_STEPS // offset).double(), dim=0)
    log_sigma = 0.5 * torch.log((1 - native) / native)
    places = torch.arange(TRAIN_STEPS - offset + 1, dtype=torch.float64) / offset
    low = places.floor().long().clamp(max=len(native) - 1)
    high = (low + 1).clamp(max=len(native) - 1)
    return Levels(torch.exp(torch.lerp(log_sigma[low], log_sigma[high], places - low)), offset)


def choose_timesteps(levels: Levels, steps: int, spacing: Spacing = "even", start: float = 1.0) -> Tensor:
    """Return the timesteps of a run; its levels are ``levels.sigmas`` at these.

    Args:
        levels: of the network.
        steps: 1 .. 1000, at most the timesteps up to ``start``.
        spacing: "even" takes equal parts of the way from clip to noise, so that a 50-step run of release 1.0 with the
            offset 20 is the release's own; "karras" takes most steps where little noise is left.
        start: share 0..1 of the way to noise at which the run starts. Just below 1 the first estimate, which is made of
            noise alone and so of the mean of all clips, decides less, and clips differ more.

    Returns:
        ``[steps]`` integers, falling.

    Raises:
        InputError: naming the value that is out of range.
    """
    check_steps(steps)
    first = levels.timestep_at(start)
    if not 0.0 < start <= 1.0 or first + 1 < steps:
        raise InputError(
            f"expected a start of more than 0 and at most 1 with {steps} timesteps up to it, got {start}: start later "
            "in the noise or take fewer steps"
        )
    if spacing == "karras":
        sigmas = levels.sigmas
        if sigmas[first].isinf():
            raise InputError(
                f"expected a start below 1 with karras, got {start}, which has no signal at its start: 0.98"
            )
        ends = sigmas[[first, 0]] ** (1 / RHO)
        wanted = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)) ** RHO
        timesteps = (sigmas.log()[None] - wanted.log()[:, None]).abs().argmin(dim=1)
    elif spacing == "even":
        end = min(TRAIN_STEPS * start, first + levels.offset)
        shares = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
        timesteps = (end * shares - levels.offset).round().long()
    else:
        raise InputError(f"expected a spacing, got {spacing!r}: choose from {', '.join(SPACINGS)}")
    return _strictly_falling(timesteps, first)


def _strictly_falling(timesteps: Tensor, first: int) -> Tensor:
    """Move timesteps apart that rounding laid onto one another, within 0 .. ``first``."""
    steps = len(timesteps)
    below = torch.arange(steps - 1, -1, -1)
    # Room for those that follow, then for those before.
    timesteps = (timesteps - below).flip(0).cummax(dim=0).values.clamp(min=0).flip(0) + below
    return ((timesteps - below).clamp(max=first - steps + 1)) + below
