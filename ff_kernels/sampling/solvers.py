"""Solvers behind one interface: noise levels to the table of coefficients that the step loop runs through.

Letters as in Lu et al. 2022 (DPM-Solver++): a sample at level t is ``x_t = alpha_t x_0 + sigma_t eps`` with
``alpha_t^2 + sigma_t^2 = 1``; ``lambda_t = log(alpha_t / sigma_t)``; a step goes from s to t and
``h = lambda_t - lambda_s``; D_s is the x0 estimate at s, brought into range by the release's thresholding before any
solver sees it; z is normal noise. Every solver is linear in x, D and z, so a run is a table and the loop
(``sample_latents``) is one for all.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import Coefficients
from .schedule import Schedule

# Timesteps ``[S]`` and shares of the signal's variance ``[S + 1]``, the last that of the result: 1 for a clean sample.
Solver = Callable[[Tensor, Tensor], Schedule]


def _parts(bars: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha, sigma and lambda of levels, float64; lambda is infinite where one of the others is 0."""
    bars = bars.double()
    alpha, sigma = bars.sqrt(), (1 - bars).sqrt()
    return alpha, sigma, alpha.log() - sigma.log()


def _table(
    timesteps: Tensor, bars: Tensor, gains: tuple[Tensor, Tensor, Tensor], previous_gain: Tensor | None = None
) -> Schedule:
    alpha, sigma, _ = _parts(bars)
    columns = (alpha[:-1], sigma[:-1], *gains)
    draws = tuple(bool(gain > 0) for gain in gains[-1])
    previous = None if previous_gain is None else previous_gain.float()
    return Schedule(timesteps, Coefficients(*(column.float() for column in columns)), draws, previous)


def ddim(timesteps: Tensor, bars: Tensor, *, eta: float = 0.0) -> Schedule:
    """Return a run of DDIM (Song et al. 2021, equation 12 and 16).

    ``x_t = alpha_t D_s + sqrt(sigma_t^2 - tau^2) (x_s - alpha_s D_s) / sigma_s + tau z`` with
    ``tau = eta (sigma_t / sigma_s) sqrt(1 - alpha_s^2 / alpha_t^2)``.

    Args:
        timesteps: ``[S]`` integers told to the network.
        bars: ``[S + 1]`` shares of the signal's variance, rising; the last is that of the result.
        eta: 0 is deterministic and of first order, 1 is DDPM.

    Raises:
        InputError: if eta is not within 0 .. 1.
    """
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"expected an eta of 0 to 1, got {eta}: 0 draws no noise, 1 is DDPM")
    alpha, sigma, _ = _parts(bars)
    (alpha_s, alpha_t), (sigma_s, sigma_t) = (alpha[:-1], alpha[1:]), (sigma[:-1], sigma[1:])
    tau = eta * sigma_t / sigma_s * (1 - (alpha_s / alpha_t).square()).clamp(min=0).sqrt()
    x_gain = (sigma_t.square() - tau.square()).clamp(min=0).sqrt() / sigma_s
    return _table(timesteps, bars, (alpha_t - x_gain * alpha_s, x_gain, tau))


def ddpm(timesteps: Tensor, bars: Tensor) -> Schedule:
    """Return a run of DDPM (Ho et al. 2020, equation 7), the posterior of x_t given x_s and the estimate.

    ``x_t = alpha_t b / sigma_s^2 D_s + (alpha_s / alpha_t) (sigma_t^2 / sigma_s^2) x_s + sigma_t sqrt(b) / sigma_s z``
    with ``b = 1 - alpha_s^2 / alpha_t^2``: DDIM with eta = 1. Arguments as in ``ddim``.
    """
    return ddim(timesteps, bars, eta=1.0)


def dpm_solver_2m(timesteps: Tensor, bars: Tensor) -> Schedule:
    """Return a run of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): deterministic, of second order.

    ``x_t = (sigma_t / sigma_s) x_s - alpha_t (e^-h - 1) (D_s + c (D_s - D_r))`` with r the level before s and
    ``c = h / (2 (lambda_s - lambda_r))``; c is 0 in the first step and in one that ends without noise. Arguments as in
    ``ddim``.
    """
    return _multistep(timesteps, bars, is_random=False)


def dpm_solver_sde_2m(timesteps: Tensor, bars: Tensor) -> Schedule:
    """Return a run of SDE-DPM-Solver++(2M) (Lu et al. 2022, section 4 and appendix A), of second order, with noise.

    ``x_t = (sigma_t / sigma_s) e^-h x_s + alpha_t (1 - e^-2h) (D_s + c (D_s - D_r)) + sigma_t sqrt(1 - e^-2h) z``, c as
    in ``dpm_solver_2m``. Arguments as in ``ddim``.
    """
    return _multistep(timesteps, bars, is_random=True)


def _multistep(timesteps: Tensor, bars: Tensor, *, is_random: bool) -> Schedule:
    alpha, sigma, lambda_ = _parts(bars)
    h = lambda_.diff()
    # From a level without signal on, h is infinite and the estimate there says nothing about the slope: c is 0 then.
    c = torch.cat([h.new_zeros(1), h[1:] / (2 * h[:-1])])
    c = torch.where(h.isinf(), 0.0, c)
    forgotten = 1 - torch.exp(-2 * h if is_random else -h)
    D_gain = alpha[1:] * forgotten
    x_gain = sigma[1:] / sigma[:-1] * (torch.exp(-h) if is_random else 1.0)
    noise_gain = sigma[1:] * forgotten.sqrt() if is_random else torch.zeros_like(h)
    return _table(timesteps, bars, (D_gain * (1 + c), x_gain, noise_gain), -D_gain * c)


# Names as other programs write them.
SOLVERS: dict[str, Solver] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp_2m": dpm_solver_2m,
    "dpmpp_2m_sde": dpm_solver_sde_2m,
}


def find_solver(name: str, eta: float | None = None) -> Solver:
    """Return a solver by name.

    Args:
        name: a key of ``SOLVERS``.
        eta: of DDIM only; None is 0.

    Raises:
        InputError: if there is none of this name, or it takes no eta.
    """
    if name not in SOLVERS:
        raise InputError(f"expected a solver, got {name!r}: choose from {', '.join(SOLVERS)}")
    if eta is not None and name != "ddim":
        raise InputError(f"expected an eta with the solver ddim only, got {eta} with {name}: leave it out")
    return SOLVERS[name] if eta is None else partial(ddim, eta=eta)
