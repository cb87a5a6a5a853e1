"""Solvers on data whose exact solution is known: every value normal with mean 0.3 and deviation 0.5."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.sampling.levels import choose_timesteps, trained_levels
from fusionframes.ff_kernels.sampling.noise import SeededNoise
from fusionframes.ff_kernels.sampling.samplers import sample_latents
from fusionframes.ff_kernels.sampling.schedule import make_schedule_from_sigmas, make_schedule_v10
from fusionframes.ff_kernels.sampling.solvers import SOLVERS, ddim, ddpm, find_solver

MEAN, DEVIATION = 0.3, 0.5
DEMO = trained_levels("1.0", 20)
# From noise 5 times the signal to a twentieth of it, in equal steps of the logarithm.
LOG_SIGMAS = (math.log(5.0), math.log(0.05))


def levels(steps):
    return 1 / (1 + torch.linspace(*LOG_SIGMAS, steps + 1, dtype=torch.float64).exp().square())


def mean_estimate(bars, mean):
    """The exact x0 estimate of normal data: E[x0 | x]."""
    alpha, variance = bars.sqrt(), bars * DEVIATION**2 + 1 - bars

    def predict(x, step):
        gain = (alpha[step] * DEVIATION**2 / variance[step]).to(x)
        return mean + gain * (x - alpha[step].to(x) * mean)

    return predict


def run(solver, steps, x, noise, mean=MEAN):
    bars = levels(steps)
    schedule = solver(torch.arange(steps), bars)
    # Tables are float32; with float64 samples what is left is the solver's own error, down to 1e-6.
    return sample_latents(mean_estimate(bars, mean), x, schedule, noise, predicted="denoised", threshold="none"), bars


def path_error(solver, steps):
    """Distance from the exact solution of the probability flow: x keeps its place within the marginal."""
    places = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    deviation = (levels(steps) * DEVIATION**2 + 1 - levels(steps)).sqrt()
    start = levels(steps)[0].sqrt() * MEAN + deviation[0] * places
    out, bars = run(solver, steps, start, SeededNoise([0]))
    return (out - (bars[-1].sqrt() * MEAN + deviation[-1] * places)).abs().max().item()


class Basis:
    """Noise whose k-th draw is the k-th unit vector, so that a linear run shows the weight of every draw."""

    def __init__(self):
        self.drawn = 0

    def normal(self, shape):
        self.drawn += 1
        return torch.nn.functional.one_hot(torch.tensor([self.drawn]), shape[1]).double()


def spread_error(solver, steps):
    """Relative error of the deviation that a run with noise ends with, exact, not from samples."""
    bars = levels(steps)
    start = torch.zeros(1, steps + 2, dtype=torch.float64)
    start[0, 0] = (bars[0] * DEVIATION**2 + 1 - bars[0]).sqrt()
    out, _ = run(solver, steps, start, Basis(), mean=0.0)
    exact = (bars[-1] * DEVIATION**2 + 1 - bars[-1]).sqrt()
    return (out.norm() / exact - 1).abs().item()


def order(error, solver, coarse=16):
    """How fast the error falls when steps are halved in size: 1 for first order, 2 for second."""
    return math.log2(error(solver, coarse) / error(solver, 2 * coarse))


@pytest.mark.parametrize(("name", "expected"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_deterministic_solver_converges_to_the_exact_path_at_its_order(name, expected):
    assert order(path_error, SOLVERS[name]) == pytest.approx(expected, abs=0.25)
    assert path_error(SOLVERS[name], 64) < 0.02


@pytest.mark.parametrize(("name", "expected"), [("ddpm", 1), ("dpmpp_2m_sde", 2)])
def test_solver_with_noise_reaches_the_spread_of_the_data_at_its_order(name, expected):
    assert order(spread_error, SOLVERS[name], coarse=32) == pytest.approx(expected, abs=0.35)
    assert spread_error(SOLVERS[name], 128) < 0.02


def test_second_order_is_closer_than_first_in_few_steps():
    assert path_error(SOLVERS["dpmpp_2m"], 10) < path_error(SOLVERS["ddim"], 10) / 2


falling = st.lists(st.floats(0.01, 50.0), min_size=2, max_size=12, unique=True).map(lambda s: sorted(s, reverse=True))


@settings(max_examples=40, deadline=None)
@given(falling, st.sampled_from(sorted(SOLVERS)))
def test_a_perfect_estimate_is_carried_along_the_levels(sigmas, name):
    # Where D is the clip itself, the share of the clip in x must be that of the next level, whatever the solver.
    bars = torch.cat([1 / (1 + torch.tensor(sigmas, dtype=torch.float64).square()), torch.ones(1)])
    schedule = SOLVERS[name](torch.arange(len(sigmas)), bars)
    gains, previous = schedule.coefficients, schedule.previous_gain
    carried = gains.x0_gain + gains.x_gain * gains.signal + (0 if previous is None else previous)
    assert torch.allclose(carried.double(), bars[1:].sqrt(), atol=1e-4)
    assert all(torch.isfinite(column).all() for column in gains)


@settings(max_examples=40, deadline=None)
@given(falling)
def test_ddpm_is_ddim_with_all_its_noise_and_the_hosts_own_table(sigmas):
    bars = torch.cat([1 / (1 + torch.tensor(sigmas, dtype=torch.float64).square()), torch.ones(1)])
    one, other = ddpm(torch.arange(len(sigmas)), bars), ddim(torch.arange(len(sigmas)), bars, eta=1.0)
    host = make_schedule_from_sigmas(torch.tensor([*sigmas, 0.0]))
    for a, b, c in zip(one.coefficients, other.coefficients, host.coefficients, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c.float(), atol=1e-4)
    assert one.draws_noise == host.draws_noise == (True,) * (len(sigmas) - 1) + (False,)


def test_ddpm_through_the_levels_of_fifty_steps_is_the_release():
    timesteps = choose_timesteps(DEMO, 50)
    released, ours = make_schedule_v10(50), ddpm(timesteps, DEMO.bars_of(timesteps))
    for a, b in zip(released.coefficients, ours.coefficients, strict=True):
        assert torch.allclose(a[:-1], b[:-1], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_second_order_starts_and_ends_with_first(name):
    timesteps = choose_timesteps(DEMO, 6, "karras", 0.98)
    previous = SOLVERS[name](timesteps, DEMO.bars_of(timesteps)).previous_gain
    assert previous[0] == previous[-1] == 0
    assert (previous[1:-1] < 0).all()


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_run_from_pure_noise_is_finite_and_ends_at_the_estimate(name):
    full = trained_levels("1.1", to_the_end=True)
    timesteps = choose_timesteps(full, 4)
    bars = full.bars_of(timesteps)
    out = sample_latents(
        mean_estimate(bars, MEAN), torch.randn(2, 3), SOLVERS[name](timesteps, bars), SeededNoise([0, 1]),
        predicted="denoised", threshold="range",
    )  # fmt: skip
    assert out.isfinite().all()
    assert out.abs().max() <= 1


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("threshold", ["quantile", "range"])
def test_every_solver_sees_the_estimate_brought_into_range(name, threshold):
    timesteps = choose_timesteps(DEMO, 5)
    seen = []
    sample_latents(
        lambda x, step: 40 * x, torch.randn(2, 3, 4, 4), SOLVERS[name](timesteps, DEMO.bars_of(timesteps)),
        SeededNoise([3]), predicted="denoised", threshold=threshold,
        callback=lambda i, n, D: seen.append(D.abs().max().item()),
    )  # fmt: skip
    assert max(seen) <= 1


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_clip_is_the_same_alone_and_in_a_batch(name):
    timesteps = choose_timesteps(DEMO, 5)
    schedule, bars = SOLVERS[name](timesteps, DEMO.bars_of(timesteps)), DEMO.bars_of(timesteps)

    def sampled(seeds):
        noise = SeededNoise(seeds)
        start = noise.normal((len(seeds) * 2, 3))
        return sample_latents(mean_estimate(bars, MEAN), start, schedule, noise, predicted="denoised")

    assert torch.equal(sampled([7, 8])[2:], sampled([8]))


def test_find_solver_names_what_it_does_not_know():
    with pytest.raises(InputError, match="'euler': choose from ddpm, ddim, dpmpp_2m, dpmpp_2m_sde"):
        find_solver("euler")
    with pytest.raises(InputError, match=r"0\.5 with ddpm"):
        find_solver("ddpm", 0.5)
    with pytest.raises(InputError, match=r"got 1\.5"):
        find_solver("ddim", 1.5)(torch.arange(1), torch.tensor([0.5, 1.0]))
