"""What a plan of a run says, from sizes alone."""

import torch
from support import released

from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.planning import TITLES, plan_run
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.runtime.plan import Budget


def planned(pipeline, fps="high"):
    return {stage.title: stage for stage in plan_run(pipeline, pipeline.resolve(Settings(fps=fps)))}


def test_networks_of_one_stage_and_other_sizes_have_plans_of_their_own():
    full = Pipeline(released.files("1.0"), device="cuda", dtype=torch.float16, budget=Budget(24 * 10**9))
    for _ in range(2):
        assert planned(full)["keyframes"].plan.resident > 4e9
        assert planned(demo_pipeline())["keyframes"].plan.resident < 2e7


def test_a_plan_is_said_in_words_and_in_rows():
    budget = Budget(4 * 10**9, 8 * 10**9)
    stages = planned(Pipeline(released.files("1.1"), device="cuda", dtype=torch.float16, budget=budget))
    assert "streamed from the file" in stages["text encoder"].phrase()
    assert "streamed from memory, branches in turn" in stages["keyframes"].phrase()
    assert "colours to 16 bit and chunks of 2 frames, which moves the seams" in stages["decoding"].phrase()
    assert all(len(stage.row()) == len(TITLES) for stage in stages.values())
    assert stages["decoding"].row()[0] == "decoding"


def test_weights_in_8_bit_are_nearly_all_on_a_card_of_4_gb():
    budget = Budget(4 * 10**9, 8 * 10**9)
    options = {"device": "cuda", "dtype": torch.float16, "budget": budget}
    plain, small = (planned(Pipeline(released.files("1.0"), rounds=rounds, **options)) for rounds in (False, True))
    assert plain["keyframes"].plan.passing > 2e9
    assert small["keyframes"].plan.passing < 0.2e9
    assert small["keyframes"].plan.resident + small["keyframes"].plan.passing < 2.6e9
