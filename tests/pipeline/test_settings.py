import pytest

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.pipeline.settings import (
    Settings,
    describe_sampling,
    resolve_settings,
    sampling_warnings,
)
from fusionframes.ff_kernels.stages.presets import PLANS, PRESETS, Plan
from fusionframes.ff_kernels.stages.releases import RELEASES

DEFAULTS = Settings(fps="high", width=64, height=64)


def resolved(family="1.0", **options):
    return resolve_settings(Settings(**options), DEFAULTS, 8, 5, RELEASES[family])


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("1.0", {}, (50, 50)),
        ("1.1", {}, (50, 10)),
        ("1.0", {"steps": 30}, (30, 30)),
        ("1.1", {"steps": 30}, (30, 10)),
        ("1.0", {"steps": 30, "interpolation_steps": 8}, (30, 8)),
        ("1.0", {"interpolation_steps": 8}, (50, 8)),
        ("1.1", {"preset": "balanced"}, (PRESETS["balanced"].steps, PRESETS["balanced"].interpolation_steps)),
        ("1.0", {"preset": "balanced", "steps": 20}, (20, PRESETS["balanced"].interpolation_steps)),
        ("1.0", {"preset": "fast", "interpolation_steps": 7}, (PRESETS["fast"].steps, 7)),
        ("1.0", {"interpolation_solver": "ddpm", "steps": 6}, (6, 50)),
    ],
    ids=[
        "release_1_0", "release_1_1", "one_number_for_both_in_1_0", "keyframes_only_in_1_1", "both_given",
        "interpolation_given", "preset", "steps_over_preset", "interpolation_steps_over_preset",
        "one_number_only_as_released",
    ],
)  # fmt: skip
def test_steps_of_both_stages_come_from_caller_preset_and_release_in_this_order(family, options, expected):
    settings = resolved(family, **options)
    assert (settings.steps, settings.interpolation_steps) == expected


def test_resolving_twice_changes_nothing():
    settings = resolved(preset="balanced", solver="ddim")
    assert resolve_settings(settings, DEFAULTS, 8, 5, RELEASES["1.0"]) == settings


def test_released_settings_plan_nothing_and_single_options_override_a_preset():
    assert resolved().plan == resolved().interpolation_plan == Plan()
    settings = resolved(preset="fast", solver="ddim", interpolation_solver="released", guided=(0.3, 5.0))
    assert (settings.plan.solver, settings.plan.guided) == ("ddim", (0.3, 5.0))
    assert settings.interpolation_plan == Plan()
    assert resolved(preset="balanced").plan == PRESETS["balanced"].plan
    assert resolved(solver="dpmpp_2m").plan == PLANS["dpmpp_2m"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preset": "turbo"}, "a preset, got 'turbo'"),
        ({"solver": "euler"}, "a solver, got 'euler'"),
        ({"interpolation_solver": "euler"}, "a solver, got 'euler'"),
        ({"interpolation_steps": 0}, "1 to 1000 steps, got 0"),
        ({"guided": (3.0, 1.0)}, "got 3 and 1"),
    ],
    ids=["preset", "solver", "interpolation_solver", "interpolation_steps", "guided"],
)
def test_wrong_value_is_named_before_anything_runs(options, named):
    with pytest.raises(InputError, match=named):
        resolved(**options)


def test_line_after_the_run_says_what_was_taken():
    assert describe_sampling(resolved()) == "preset released: 50 steps + 50 steps per interpolation pass"
    words = describe_sampling(resolved(fps="low", solver="dpmpp_2m", steps=8, guided=(0.3, 5.0)))
    assert words == "preset released: 8 steps of dpmpp_2m, guided from 5 to 0.3"


@pytest.mark.parametrize(
    ("family", "options", "warns"),
    [
        ("1.0", {"steps": 19}, True),
        ("1.0", {"interpolation_steps": 4}, True),
        ("1.0", {"steps": 20}, False),
        ("1.0", {"preset": "fast"}, False),
        ("1.1", {}, False),
        ("1.1", {"steps": 10}, True),
        ("1.0", {"interpolation_steps": 4, "fps": "low"}, False),
    ],
    ids=["keyframes", "interpolation", "enough", "preset", "ten_trailing_steps_of_1_1", "leading", "no_interpolation"],
)
def test_few_steps_of_the_released_formula_are_warned_of_once(family, options, warns):
    found = sampling_warnings(resolved(family, **options), RELEASES[family])
    assert len(found) == warns
