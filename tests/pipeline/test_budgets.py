"""On a device that counts its bytes every stage stays under its plan in any budget, and gives what it gives with room.

No margin: what is counted is at most the plan, and the plan at most the budget without its reserve. Shares are of the
weights, with room for the results beside them; of MoVQ, whose weights all stay, they are shares of weights and results.
"""

import re
from functools import cache, partial
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from support import quarter, soroban
from support.budgets import STAGES, Run, Stage

from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.errors import DeviceError
from fusionframes.ff_kernels.pipeline.needs import MovqPlan
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.runtime.budget import without_reserve
from fusionframes.ff_kernels.runtime.plan import Budget

# Branches in turn: those that run together differ by rounding.
DEMO = Settings(steps=1, interpolation_steps=1, keyframes=4, is_stacked=False)
QUARTER = Settings(width=64, height=64, steps=1, interpolation_steps=1, keyframes=2, is_stacked=False)
QUARTERS = {
    "1.0": ("text_encoder", "keyframe", "interpolation", "movq"),
    "1.1": ("keyframe", "interpolation", "movq", "video_movq"),
}
SHARES = (0.3, 0.5, 0.75, 1.0, 1.2)
UNETS = ("keyframes", "interpolation 1", "interpolation 2")
# Below these shares nothing runs: two blocks are all of the demo's encoder, and 16 bit takes half of MoVQ's weights.
BELOW = {("demo", "text encoder"): 1.0, ("1.0", "text encoder"): 0.5, ("1.0", "decoding"): 0.5}


@cache
def files(family: str):
    return quarter.files(family, QUARTERS[family])


@cache
def stage(model: str, name: str, parity: str = "strict", keyframes: int | None = None, **options) -> Stage:
    if model == "demo":
        make, settings = demo_pipeline, DEMO
    else:
        make, settings = partial(Pipeline, files(model)), QUARTER
    changed = {} if keyframes is None else {"keyframes": keyframes}
    settings = Settings(**{**vars(settings), **changed})
    return Stage(name, partial(make, device=soroban.NAME, parity=parity, **options), settings)


def assert_kept(stage: Stage, budget: Budget) -> Run:
    run = stage.run(budget)
    assert run.plan.peak <= without_reserve(budget.vram)
    assert run.conditioner <= run.counted <= run.plan.peak
    assert torch.equal(run.out, stage.expected(run.plan))
    return run


def cells(*parts):
    return [(model, name, share) for model, names, shares in parts for name, share in product(names, shares)]


# In 16 bit a processor takes half a minute for the layers over time of MoVQ: release 1.0 stands for both.
ALL = cells(
    ("demo", [name for name in STAGES if name != "first frame"], SHARES),
    ("1.0", ("text encoder", "keyframes"), (0.3, 0.75, 1.2)), ("1.0", ("interpolation 1", "decoding"), (0.3, 1.2)),
    ("1.0", ("interpolation 2",), (0.5,)), ("1.1", ("keyframes",), (0.5,)), ("1.1", ("interpolation 1",), (0.3, 1.2)),
    ("1.1", ("first frame", "decoding"), (1.2,)),
)  # fmt: skip
FIT = [cell for cell in ALL if cell[2] >= BELOW.get(cell[:2], 0)]
TOO_SMALL = [cell for cell in ALL if cell not in FIT]


@pytest.mark.parametrize(("model", "name", "share"), FIT)
def test_every_stage_stays_under_its_plan_and_gives_the_results_of_a_resident_run(model, name, share):
    part = stage(model, name)
    run = assert_kept(part, part.budget(share))
    if isinstance(run.plan, MovqPlan):
        assert (run.plan.peak < part.resident.plan.peak) == (share < 1)
    else:
        assert bool(run.plan.streamed) == (share < 1)


@pytest.mark.parametrize(("model", "name", "share"), TOO_SMALL)
def test_a_budget_below_the_smallest_is_refused_with_one_that_runs(model, name, share):
    part = stage(model, name)
    with pytest.raises(DeviceError) as raised:
        part.run(part.budget(share))
    assert_runs_in_the_named(part, raised.value)


def assert_runs_in_the_named(part: Stage, error: DeviceError) -> None:
    (said,) = re.findall(r"a budget of at least (\d+\.\d\d) (MB|GB) on the device", str(error))
    least = round(float(said[0]) * {"MB": 1e6, "GB": 1e9}[said[1]])
    assert_kept(part, Budget(least))
    # It is the smallest but for its rounding up.
    with pytest.raises(DeviceError):
        part.run(Budget(least - {"MB": 10**4, "GB": 10**7}[said[1]]))


@pytest.mark.parametrize("name", UNETS)
def test_the_smallest_budget_of_a_stage_runs(name):
    part = stage("demo", name)
    with pytest.raises(DeviceError) as raised:
        part.run(Budget(10**6))
    assert "got 1.00 MB" in str(raised.value)
    assert_runs_in_the_named(part, raised.value)


@pytest.mark.parametrize(("model", "name"), [("demo", "keyframes"), ("1.0", "interpolation 1")])
def test_weights_in_8_bit_stay_under_their_plan(model, name):
    part = stage(model, name, rounds=True)
    for share in (0.75,) if model == "1.0" else (0.75, 1.2):
        run = assert_kept(part, part.budget(share))
        assert run.plan.widened
        assert run.plan.peak < stage(model, name).resident.plan.peak


@pytest.mark.parametrize(
    ("model", "name", "share"),
    [*(("demo", name, 0.5) for name in (*UNETS, "decoding")), ("1.1", "first frame", 1.2), ("1.1", "decoding", 1.2),
     ("1.0", "interpolation 1", 0.3)],
)  # fmt: skip
def test_folded_layers_stay_under_their_plan(model, name, share):
    part = stage(model, name, "fast")
    assert_kept(part, part.budget(share))


@pytest.mark.parametrize("name", UNETS)
def test_a_budget_that_decides_for_branches_in_turn_is_kept(name):
    make = partial(demo_pipeline, device=soroban.NAME, parity="strict")
    part = Stage(name, make, Settings(**{**vars(DEMO), "is_stacked": None}))
    together, in_turn = part.resident, stage("demo", name)
    assert together.plan.is_stacked
    assert together.counted <= together.plan.peak
    run = part.run(Budget(together.plan.peak))
    assert not run.plan.is_stacked
    assert run.counted <= run.plan.peak
    assert torch.equal(run.out, in_turn.resident.out)


@tries(max_examples=4, deadline=None, derandomize=True)
@given(st.sampled_from(UNETS), st.integers(2, 7), st.floats(0.3, 1.2))
def test_any_number_of_frames_stays_under_its_plan(name, keyframes, share):
    part = stage("demo", name, keyframes=keyframes)
    assert_kept(part, part.budget(share))
