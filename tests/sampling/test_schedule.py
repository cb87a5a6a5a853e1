import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.sampling.noise import SeededNoise
from fusionframes.ff_kernels.sampling.samplers import sample_latents
from fusionframes.ff_kernels.sampling.schedule import (
    TRAIN_STEPS,
    alphas_cumprod_v11,
    cosine_betas,
    make_schedule_from_sigmas,
    make_schedule_v10,
    make_schedule_v11,
    posterior_tables_v10,
)

# The authors' 50-step table (models/RELEASES.md, "Check values"): step, told, alpha_bar, x0 gain, x gain, log variance.
RELEASE_V10 = [
    (1, 20, 0.99457002, 0.6787738, 0.3212281, -6.7361684),
    (10, 200, 0.87912256, 0.1708972, 0.8288091, -4.0030212),
    (40, 800, 0.07664982, 0.0614340, 0.8857806, -1.7065707),
    (49, 980, 9.7118e-07, 0.0311328, 0.0315919, -0.0019712),
]


@pytest.mark.parametrize("row", RELEASE_V10, ids=lambda row: f"step_{row[0]}")
def test_schedule_v10_has_the_released_values(row):
    step, told, bar, x0_gain, x_gain, log_variance = row
    schedule, place = make_schedule_v10(50), 49 - step
    gains = schedule.coefficients
    assert schedule.timesteps[place] == told
    values = [
        gains.signal[place] ** 2,
        gains.x0_gain[place],
        gains.x_gain[place],
        2 * gains.noise_gain[place].log(),
    ]
    # The last entries come from 1 - beta in float32, hence the wider bound there.
    assert [v.item() for v in values] == pytest.approx([bar, x0_gain, x_gain, log_variance], rel=2e-3)


@pytest.mark.parametrize(
    ("timestep", "bar"), [(0, 0.9999588728), (20, 0.9981142282), (480, 0.5234284401), (980, 0.0008737005), (999, 0.0)]
)
def test_schedule_v11_has_the_released_values(timestep, bar):
    assert alphas_cumprod_v11()[timestep].item() == pytest.approx(bar, rel=1e-4, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300))
def test_schedule_v10_told_timesteps_follow_the_release(steps):
    schedule = make_schedule_v10(steps)
    assert schedule.timesteps.tolist() == [i * (TRAIN_STEPS // steps) for i in reversed(range(steps))]
    assert len(schedule) == steps
    gains = schedule.coefficients
    assert gains.noise_gain[-1] == 0
    assert (gains.signal.diff() > 0).all()
    assert torch.allclose(gains.signal**2 + gains.noise**2, torch.ones(steps), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.sampled_from(["v10", "leading", "trailing"]))
def test_step_keeps_a_clean_trajectory_on_the_schedule(steps, kind):
    # With the true x0 and eps the posterior mean must carry the next level's share of x0 (its coefficients are exact).
    schedule = make_schedule_v10(steps) if kind == "v10" else make_schedule_v11(steps, kind)
    gains = schedule.coefficients
    signal = torch.cat([gains.signal, torch.ones(1)]).double()
    carried = gains.x0_gain.double() + gains.x_gain.double() * gains.signal.double()
    assert torch.allclose(carried, signal[1:], atol=2e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1000))
def test_schedule_v11_spacings_stay_in_range_and_fall(steps):
    for spacing, last in (("leading", 0), ("trailing", None)):
        timesteps = make_schedule_v11(steps, spacing).timesteps
        assert len(timesteps) == steps
        assert timesteps.max() < TRAIN_STEPS
        assert timesteps.min() >= 0
        assert (timesteps.diff() < 0).all()
        assert last is None or timesteps[-1] == last
    assert make_schedule_v11(steps, "trailing").timesteps[0] == 999


def test_make_schedule_v11_trailing_rounds_near_halves_as_the_authors_scheduler_does():
    # The fourth is 937.4999999999999 in NumPy's steps and 937.5 in torch's, which would give 937.
    assert make_schedule_v11(48, "trailing").timesteps[:5].tolist() == [999, 978, 957, 936, 916]


def test_posterior_tables_v10_first_variance_is_replaced():
    tables = posterior_tables_v10(20)
    assert tables.posterior_variance[0] == 0
    assert tables.posterior_log_variance[0] == tables.posterior_log_variance[1]


def test_cosine_betas_are_capped():
    assert cosine_betas(50).max().item() == pytest.approx(0.999)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_make_schedule_step_count_out_of_range_is_named(steps):
    for make in (make_schedule_v10, lambda n: make_schedule_v11(n, "leading")):
        with pytest.raises(InputError, match=str(steps)):
            make(steps)


def test_make_schedule_v11_unknown_spacing_is_named():
    with pytest.raises(InputError, match="linspace"):
        make_schedule_v11(10, "linspace")


def test_schedule_of_one_sigma_has_no_step_and_sampling_returns_its_start():
    schedule = make_schedule_from_sigmas(torch.tensor([7.0]))
    assert len(schedule) == 0
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    out = sample_latents(lambda x, step: pytest.fail("a step ran"), x, schedule, SeededNoise([1, 2]))
    assert torch.equal(out, x)
    with pytest.raises(InputError, match="one or more sigmas"):
        make_schedule_from_sigmas(torch.tensor([]))
