import json

import numpy as np
import pytest
import torch

from fusionframes.ff_kernels.bench.sizes import decoder_parameters
from fusionframes.ff_kernels.demo import recipe
from fusionframes.ff_kernels.demo.batches import draw_windows
from fusionframes.ff_kernels.demo.world.scenes import is_held_out
from fusionframes.ff_kernels.models.configs import TEMPORAL_VARIANTS
from fusionframes.ff_kernels.paper import budgets, command, decoders, gaps, runs, tables, variants
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.training.losses import FrozenEncoder

TINY = 0.02


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


@pytest.mark.parametrize("row", decoders.ROWS, ids=lambda row: row.name)
def test_every_row_of_table_3_has_the_papers_parameters(row):
    # The paper cuts to millions: 539,803,167 is printed as 539.
    assert decoder_parameters(row.config()) // 10**6 == row.paper[4]


@pytest.mark.parametrize("row", decoders.ROWS, ids=lambda row: row.name)
def test_every_decoder_starts_with_the_pictures_of_the_shipped_one(row):
    latents = torch.rand(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = runs.shipped("vae/fusionframes_demo_movq").decode(latents)
    start = decoders.start_of(row)
    assert torch.allclose(start.decode(latents, frames=3), expected, atol=1e-4)
    # And it does look at other frames once trained: the weights over time are there to be moved.
    assert start.config.is_video == (row.trained != "-")


@pytest.mark.parametrize("variant", TEMPORAL_VARIANTS)
def test_every_variant_starts_from_the_shipped_spatial_weights_and_trains_the_rest(variant):
    objective = variants.start_of(variant)
    shipped = runs.shipped("diffusion_models/fusionframes_demo_keyframes").state_dict()
    own = objective.unet.state_dict()
    spatial = [key for key in shipped if "temporal" not in key]
    assert all(torch.equal(own[key], shipped[key]) for key in spatial)
    assert {key for key in own if "temporal" not in key} == set(spatial)
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert trained == {f"unet.{key}" for key in own if "temporal" in key}


def test_both_interpolations_start_at_the_same_sizes_and_conditions():
    ours, masked = recipe.INTERPOLATION.to_dict(), recipe.MASKED.to_dict()
    different = {key for key in ours if ours[key] != masked[key]}
    assert different == {"stage", "num_channels", "out_channels", "num_frames"}


def test_held_out_windows_are_the_same_each_time_and_of_scenes_never_trained():
    first, again = decoders.held_out_windows(3), decoders.held_out_windows(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert {clip.shape for clip in first} == {(8, 3, 64, 64)}
    assert all(is_held_out(scene) for scene in decoders.held_out_scenes(8, seed=3))


def test_finish_keeps_numbers_until_what_they_depend_on_changes(tmp_path):
    run, worked = runs.ExperimentRun(tmp_path, 1.0, (1,)), []

    def job(steps):
        return runs.Job("row", 1, lambda: worked.append(steps) or {"PSNR": float(steps)}, {"steps": steps})

    assert [runs.finish(run, "group", job(steps))["PSNR"] for steps in (5, 5, 7)] == [5.0, 5.0, 7.0]
    assert worked == [5, 7]


def test_finish_works_anew_under_other_shipped_weights_or_guidance(tmp_path, monkeypatch):
    run, worked = runs.ExperimentRun(tmp_path, 1.0, (1,)), []
    job = runs.Job("row", 1, lambda: worked.append(1) or {"PSNR": 1.0}, {})
    runs.finish(run, "group", job)
    runs.finish(run, "group", job)
    assert len(worked) == 1
    monkeypatch.setattr(runs, "DEFAULTS", Settings(guidance_scale=7.0))
    runs.finish(run, "group", job)
    assert len(worked) == 2
    monkeypatch.setattr(runs, "shipped_weights", lambda: "others")
    runs.finish(run, "group", job)
    assert len(worked) == 3


def test_budget_share_scales_steps_and_clips_and_keeps_one():
    budget = budgets.GAPS.scaled(1e-6)
    assert (budget.train.steps, budget.clips, budget.evaluated, budget.long_clips) == (1, 1, 1, 1)
    assert budgets.DECODERS.scaled(0.5).clips == 0
    assert budgets.VARIANTS.scaled(1.0) == budgets.VARIANTS


def test_spread_is_the_sample_deviation_over_seeds():
    rows = {"a": {"1": {"x": 1.0}, "2": {"x": 3.0}}, "b": {"0": {"x": 2.0}}}
    assert tables.spread(rows, "a", "x") == (2.0, pytest.approx(2**0.5))
    assert tables.cell(rows, "a", "x", 2) == "2.00 (1.41)"
    assert tables.cell(rows, "b", "x", 1) == "2.0"
    assert tables.cell(rows, "b", "y", 1) == "-"


@pytest.mark.parametrize("group", command.GROUPS)
def test_command_trains_measures_and_resumes_at_a_tiny_share(tmp_path, capsys, group, monkeypatch):
    monkeypatch.setattr(budgets, "SAMPLING_STEPS", 1)
    monkeypatch.setattr(budgets, "TIME_FACTOR", 2)
    monkeypatch.setattr(gaps, "TIMED_RUNS", 1)
    costs = {name: {"flops": flops} for name, flops in (("ours", 10**12), ("masked", 4 * 10**12))}
    monkeypatch.setattr(gaps, "count_costs", lambda: costs)
    arguments = ["--work", str(tmp_path), "--only", group, "--share", str(TINY), "--seeds", "1"]
    arguments += ["--time"] if group == gaps.GROUP else []
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    kept = json.loads((tmp_path / command.JSON_NAME).read_text())
    names = {job.name for job in command.GROUPS[group].jobs(runs.ExperimentRun(tmp_path, TINY, (1,)))}
    assert kept[group]["rows"].keys() == names
    numbers = [value for row in kept[group]["rows"].values() for seed in row.values() for value in seed.values()]
    assert np.isfinite(numbers).all()
    assert (tmp_path / f"{group}.png").stat().st_size > 1000
    assert len([line for line in shown.splitlines() if line.startswith("| ")]) == len(names) + 2
    if group == gaps.GROUP:
        assert all(seconds > 0 for seconds in kept["seconds"].values())

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs.ExperimentRun, "train", refuse)
    assert command.main(arguments) == 0


def test_workplace_refuses_the_state_of_other_start_weights_and_the_command_says_so(tmp_path, capsys, monkeypatch):
    run, budget = runs.ExperimentRun(tmp_path, 1.0, (1,)), budgets.DECODERS.scaled(TINY)
    row = decoders.ROWS[1]

    def train(*_):
        objective = FrozenEncoder(decoders.start_of(row))
        with torch.no_grad():
            objective.movq.decoder.conv_out.bias += train.shift
        run.train("group", "name", 1, objective, draw_windows, budget)
        return {}

    train.shift = 0.0
    train()
    train.shift = 0.1
    monkeypatch.setattr(command, "run_group", train)
    with pytest.raises(SystemExit) as stop:
        command.main(["--work", str(tmp_path), "--only", decoders.GROUP])
    assert stop.value.code == 2
    assert "paper: expected" in (error := capsys.readouterr().err)
    assert "remove it to train this stage anew" in error


def test_command_refuses_to_run_without_a_folder(capsys):
    with pytest.raises(SystemExit):
        command.main([])
    assert "expected --work FOLDER" in capsys.readouterr().err
