import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.sampling.levels import SPACINGS, choose_timesteps, trained_levels
from fusionframes.ff_kernels.sampling.schedule import (
    TRAIN_STEPS,
    alphas_cumprod_v11,
    make_schedule_v10,
    make_schedule_v11,
)

LEVELS = {
    "demo": trained_levels("1.0", 20),
    "v10": trained_levels("1.0", 1),
    "v11_eps": trained_levels("1.1"),
    "v11_v": trained_levels("1.1", to_the_end=True),
}
every_network = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)


def shares(levels):
    """Share of the way from clip to noise at each level, from the cosine itself: what no table can get wrong."""
    # Nichol and Dhariwal's alpha_bar, unnormalised: cos((u + 0.008) / 1.008 * pi / 2) ** 2.
    start = torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64))
    signal = 1 / (1 + levels.sigmas.square()).sqrt() * start
    return torch.arccos(signal.clamp(max=1)) / (torch.pi / 2) * 1.008 - 0.008


@pytest.mark.parametrize("name", ["demo", "v10"])
def test_told_time_of_release_1_0_lies_its_offset_below_the_share_of_the_noise(name):
    levels = LEVELS[name]
    told = torch.arange(len(levels.sigmas))
    # The last beta is capped, which moves the noisiest level.
    apart = (shares(levels) * TRAIN_STEPS - told - levels.offset)[: TRAIN_STEPS - 40].abs()
    assert apart[:: levels.offset].max() < 0.01
    # Between the entries of the native table the logarithm is interpolated.
    assert apart.max() < 2


@pytest.mark.parametrize("name", ["v11_eps", "v11_v"])
def test_levels_of_release_1_1_are_those_of_its_training(name):
    bars = LEVELS[name].bars_of(torch.arange(len(LEVELS[name].sigmas)))
    assert torch.allclose(bars[:-1], alphas_cumprod_v11()[: len(bars) - 1].double(), atol=1e-6)
    assert len(bars) - 1 == {"v11_eps": 981, "v11_v": 1000}[name]


def test_levels_of_an_eps_prediction_end_before_no_signal_is_left():
    assert LEVELS["v11_eps"].sigmas.isfinite().all()
    assert LEVELS["v11_v"].sigmas[-1].isinf()


@pytest.mark.parametrize("levels", [LEVELS["demo"]], ids=["demo"])
def test_fifty_even_steps_at_the_offset_of_fifty_are_the_release(levels):
    released = make_schedule_v10(50)
    timesteps = choose_timesteps(levels, 50)
    assert torch.equal(timesteps, released.timesteps)
    assert torch.allclose(levels.sigmas[timesteps], released.sigmas[:-1], rtol=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 500))
def test_even_steps_of_release_1_1_are_its_trailing_spacing(steps):
    # NumPy's running sum and a product may fall on two sides of a half.
    apart = choose_timesteps(LEVELS["v11_v"], steps) - make_schedule_v11(steps, "trailing").timesteps
    assert apart.abs().max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(LEVELS)), st.integers(1, 400), st.sampled_from(SPACINGS), st.floats(0.5, 1.0))
def test_timesteps_fall_within_what_the_network_knows(name, steps, spacing, start):
    levels = LEVELS[name]
    if spacing == "karras" and levels.sigmas[levels.timestep_at(start)].isinf():
        start = 0.98
    timesteps = choose_timesteps(levels, steps, spacing, start)
    assert timesteps.dtype == torch.int64
    assert len(timesteps) == steps
    assert (timesteps.diff() < 0).all()
    assert timesteps[-1] >= 0
    assert timesteps[0] == levels.timestep_at(start) or (steps == 1 and timesteps[0] <= levels.timestep_at(start))
    bars = levels.bars_of(timesteps)
    assert (bars.diff() > 0).all()
    assert bars[-1] == 1


@every_network
def test_every_told_time_is_that_of_the_level_it_goes_with(levels):
    # The release's formula is off by 1000 / steps - 1 of 1000; here what is told and what is added cannot part.
    for steps in (4, 10, 25):
        timesteps = choose_timesteps(levels, steps)
        expected = (timesteps + levels.offset).double() / TRAIN_STEPS
        middle = timesteps < 940
        assert torch.allclose(shares(levels)[timesteps][middle], expected[middle], atol=5e-3)


def test_karras_steps_crowd_where_little_noise_is_left():
    sigmas = LEVELS["demo"].sigmas[choose_timesteps(LEVELS["demo"], 10, "karras", 0.98)]
    roots = sigmas ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff().mean().expand(9), atol=0.01)
    assert sigmas[-1] == LEVELS["demo"].sigmas[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "got 0"),
        ({"steps": 10, "spacing": "sgm"}, "'sgm': choose from even, karras"),
        ({"steps": 10, "start": 1.5}, "got 1.5"),
        ({"steps": 200, "start": 0.1}, "200 timesteps up to it, got 0.1"),
        ({"steps": 5, "spacing": "karras", "start": 1.0}, "no signal at its start"),
    ],
    ids=["no_steps", "unknown_spacing", "start_above_one", "more_steps_than_times", "karras_from_pure_noise"],
)
def test_choose_timesteps_names_what_is_out_of_range(options, named):
    with pytest.raises(InputError, match=named):
        choose_timesteps(LEVELS["v11_v"], **options)


def test_trained_levels_offset_out_of_range_is_named():
    with pytest.raises(InputError, match="got 0"):
        trained_levels("1.0", 0)
