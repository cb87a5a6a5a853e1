"""The page's table of cards is what the plans say today."""

import re
from pathlib import Path

import pytest
import torch
from support import released

from fusionframes.ff_kernels.pipeline.needs import MovqPlan
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.planning import StagePlan, plan_run
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.runtime.plan import Budget

PAGE = Path(__file__).parents[2] / "ff_kernels" / "bench" / "README.md"
CARDS = (4, 6, 8, 12, 16, 24)
STAGES = ("text encoder", "first frame", "keyframes", "interpolation", "decoding")


def planned(family: str, card: int) -> dict[str, StagePlan]:
    budget = Budget(card * 10**9, 16 * 10**9)
    pipeline = Pipeline(released.files(family), device="cuda", dtype=torch.float16, budget=budget)
    settings = pipeline.resolve(Settings(fps="high"))
    plans = plan_run(pipeline, settings, draws_picture=family == "1.1")
    return {stage.title: stage for stage in plans}


def cell(stage: StagePlan | None) -> str:
    if stage is None:
        return "-"
    plan, notes = stage.plan, []
    if isinstance(plan, MovqPlan):
        notes += [] if plan.dtype is torch.float32 else ["h"]
        notes += [f"c{plan.chunk}"] if "seams" in plan.changes else []
    else:
        notes += [f"{plan.passing / 1e9:.1f}"] if plan.passing else []
        notes += [] if plan.is_stacked or not stage.has_branches else ["t"]
    return f"{plan.peak / 1e9:.1f}" + (f" ({' '.join(notes)})" if notes else "")


def row(family: str, card: int) -> str:
    plans = planned(family, card)
    return f"| {family} | {card} | " + " | ".join(cell(plans.get(title)) for title in STAGES) + " |"


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("family", ["1.0", "1.1"])
def test_every_row_is_what_the_plan_says(family, card):
    text = PAGE.read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if re.match(rf"\| {re.escape(family)} \| {card} \|", line)]
    assert line == row(family, card)


@pytest.mark.parametrize("card", CARDS)
def test_no_stage_is_planned_above_its_card(card):
    for family in ("1.0", "1.1"):
        assert all(stage.plan.peak <= card * 10**9 for stage in planned(family, card).values())
