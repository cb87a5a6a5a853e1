import pytest

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.sampling.levels import SPACINGS
from fusionframes.ff_kernels.sampling.solvers import SOLVERS
from fusionframes.ff_kernels.stages.presets import (
    LEAST_RELEASED_STEPS,
    PLANS,
    PRESETS,
    RELEASED,
    Plan,
    Preset,
    few_steps,
    find_plan,
    find_preset,
)


def test_plans_name_every_solver_there_is_and_levels_that_exist():
    assert PLANS.keys() == {RELEASED, *SOLVERS}
    assert all(name == plan.solver and plan.spacing in SPACINGS for name, plan in PLANS.items())


def test_released_preset_changes_nothing():
    assert find_preset("released") == Preset()
    assert Preset().plan == Preset().interpolation_plan == find_plan("released") == Plan()


def test_presets_take_ever_fewer_steps():
    balanced, fast = PRESETS["balanced"], PRESETS["fast"]
    assert 50 > balanced.steps > fast.steps
    assert 50 > balanced.interpolation_steps >= fast.interpolation_steps


def test_unknown_preset_and_solver_are_named_with_those_that_exist():
    with pytest.raises(InputError, match="'best': choose from released, balanced, fast"):
        find_preset("best")
    with pytest.raises(InputError, match="'euler': choose from released, ddpm"):
        find_plan("euler")


def test_guidance_interval_has_to_rise():
    assert find_plan("dpmpp_2m", (0.3, 5.0)).guided == (0.3, 5.0)
    with pytest.raises(InputError, match=r"got 5 and 0\.3"):
        find_plan("dpmpp_2m", (5.0, 0.3))


@pytest.mark.parametrize(
    ("solver", "steps", "is_trailing", "warns"),
    [
        ("released", LEAST_RELEASED_STEPS - 1, False, True),
        ("released", LEAST_RELEASED_STEPS, False, False),
        ("released", 10, True, False),
        ("ddpm", 4, False, False),
    ],
    ids=["too_few", "enough", "trailing_tells_true_times", "consistent_solver"],
)
def test_few_steps_of_the_released_formula_are_warned_of(solver, steps, is_trailing, warns):
    warning = few_steps(PLANS[solver], steps, is_trailing)
    assert (warning is not None) == warns
    assert not warns or f"{steps} steps, below 20" in warning
