import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fusionframes.ff_kernels.bench.sizes import decoder_parameters
from fusionframes.ff_kernels.demo import recipe
from fusionframes.ff_kernels.demo.world.scenes import is_held_out
from fusionframes.ff_kernels.models.configs import TEMPORAL_VARIANTS
from fusionframes.ff_kernels.paper import (
    budgets,
    command,
    curves,
    decoders,
    gaps,
    page,
    plan,
    plots,
    runs,
    tables,
    variants,
    verdicts,
)  # fmt: skip
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.training.loop import TrainConfig

# A share of every budget that leaves one step and one clip of each kind.
TINY = 1e-4


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


@pytest.mark.parametrize("variant", TEMPORAL_VARIANTS)
def test_training_a_variant_leaves_the_noise_alone_where_it_passes(variant):
    torch.manual_seed(0)
    objective = variants.start_of(variant)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    latents = torch.rand(2, 5, 4, 16, 16) - 0.5
    ids = torch.tensor([[5, 1], [6, 1]])
    # What starts silent gets a gradient only from the second step on.
    optimiser = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        objective(
            latents, torch.randn_like(latents), ids, torch.ones_like(ids), torch.ones(2, dtype=torch.bool),
            torch.tensor([400, 600]), torch.tensor([0.6, 0.3]),
        ).backward()  # fmt: skip
        optimiser.step()
    after = objective.state_dict()
    # The first block of full size: the noise rides in its first four channels.
    block = "unet.down_samples.0.resnet_attn_blocks.0"
    mixed = f"{block}.0.resnet_blocks.3.temporal_projection.weight"
    last = f"{block}.3.temporal_resnet_blocks.3.2.weight"
    name = mixed if mixed in after else last
    moved = (after[name] - before[name]).abs().flatten(1).amax(dim=1)
    assert moved[:4].max() == 0
    assert moved[4:].max() > 0


def test_both_interpolations_start_at_the_same_sizes_and_conditions():
    ours, masked = recipe.INTERPOLATION.to_dict(), recipe.MASKED.to_dict()
    different = {key for key in ours if ours[key] != masked[key]}
    assert different == {"stage", "num_channels", "out_channels", "num_frames"}


def test_held_out_windows_are_the_same_each_time_and_of_scenes_never_trained():
    first, again = decoders.held_out_windows(3), decoders.held_out_windows(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert {clip.shape for clip in first} == {(8, 3, 64, 64)}
    assert all(is_held_out(scene) for scene in decoders.held_out_scenes(8, seed=3))


def untrained(name, worked, **settings):
    def measure(_):
        worked.append(name)
        return {"PSNR": 1.0}

    return runs.Job("group", name, 1, measure, settings)


def test_finish_keeps_numbers_until_what_they_depend_on_changes(tmp_path, monkeypatch):
    run, worked = runs.ExperimentRun(tmp_path), []
    for steps in (5, 5, 7):
        runs.finish(run, untrained("row", worked, steps=steps))
    assert len(worked) == 2
    runs.finish(run, untrained("row", worked, steps=7))
    assert len(worked) == 2
    for name, value in (("shipped_weights", "others"), ("world", "another")):
        monkeypatch.setattr(runs, name, lambda value=value: value)
        runs.finish(run, untrained("row", worked, steps=7))
    monkeypatch.setattr(runs, "DEFAULTS", Settings(guidance_scale=7.0))
    runs.finish(run, untrained("row", worked, steps=7))
    assert len(worked) == 5


def test_finish_takes_up_what_the_package_holds(tmp_path, monkeypatch):
    worked, package = [], tmp_path / "package"
    runs.finish(runs.ExperimentRun(package), untrained("row", worked))
    monkeypatch.setattr(runs, "RESULTS", package)
    assert runs.finish(runs.ExperimentRun(tmp_path / "elsewhere"), untrained("row", worked))["numbers"] == {"PSNR": 1.0}
    assert worked == ["row"]


def test_keys_agree_but_for_the_rounding_of_numbers():
    key = {"steps": 5, "start": {"squares": 2.0, "values": 3}, "mix": [1, 2.0]}
    assert runs.agree(key, {"steps": 5, "start": {"squares": 2.000001, "values": 3}, "mix": [1, 2.0]})
    for other in ({"squares": 2.001, "values": 3}, {"squares": 2.0, "values": 4}, {"squares": 2.0}):
        assert not runs.agree(key, key | {"start": other})
    assert not runs.agree(key, key | {"steps": 6})


def line_job(tmp_path, stops=lambda: False, steps=6, seen=None, dtype="float32", dtypes=None):
    """A job that trains one number to be three, watched at every other step."""

    def draw(rng, batch):
        if seen is not None:
            seen.append(1)
        return (torch.ones(batch),)

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            if dtypes is not None:
                dtypes.append(self.weight.dtype)
            return (self.weight * x - 3).square().mean()

    budget = budgets.Budget(
        TrainConfig(steps=steps, batch=2, learning_rate=0.1, warmup=1, ema_decay=0.0), 0, 1, watched=3, dtype=dtype
    )

    def measure(objective):
        if dtypes is not None:
            assert objective.weight.dtype is torch.float32
        return {"weight": objective.weight.item()}

    training = runs.Training(Line, lambda _: draw, budget, watch=measure)
    return runs.ExperimentRun(tmp_path, stops=stops), runs.Job("group", "line", 1, measure, {}, training)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_run_in_the_dtype_of_the_budget_and_numbers_are_of_float32(tmp_path, dtype):
    dtypes = []
    run, job = line_job(tmp_path, dtype=dtype, dtypes=dtypes)
    runs.finish(run, job)
    assert set(dtypes) == {getattr(torch, dtype)}
    other = line_job(tmp_path, dtype={"float32": "bfloat16", "bfloat16": "float32"}[dtype])[1]
    assert runs.find_record(run, other) is None


def test_a_job_that_ran_out_of_time_goes_on_to_the_same_numbers(tmp_path):
    whole = runs.finish(*line_job(tmp_path / "whole"))
    asked = []
    run, job = line_job(tmp_path / "parts", lambda: asked.append(1) or len(asked) > 3)
    with pytest.raises(runs.OutOfTimeError):
        runs.finish(run, job)
    assert not run.record_file(job).exists()
    seen = []
    parts = runs.finish(*line_job(tmp_path / "parts", seen=seen))
    # The first question was before the first step.
    assert len(seen) == 3
    assert parts["numbers"] == whole["numbers"]
    assert parts["curve"] == whole["curve"]
    assert list(parts["curve"]) == ["2", "4", "6"]
    assert parts["core_seconds_per_step"] > 0


def test_a_job_that_was_killed_while_it_measured_only_measures(tmp_path):
    run, job = line_job(tmp_path)
    broken = dataclasses.replace(job, measure=lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runs.finish(run, broken)
    seen = []
    assert runs.finish(*line_job(tmp_path, seen=seen))["numbers"]["weight"] > 0
    assert seen == []


def test_a_state_of_another_recipe_is_not_taken_up(tmp_path):
    run, job = line_job(tmp_path)
    runs.finish(run, job)
    seen = []
    _, other = line_job(tmp_path, seen=seen)
    training = dataclasses.replace(other.training, settings={"mix": "another"})
    runs.finish(run, dataclasses.replace(other, training=training))
    assert len(seen) == 6


def test_a_first_seed_of_every_table_comes_before_a_second_and_all_fit_the_time():
    jobs = plan.jobs_of(runs.ExperimentRun(Path("unused")), plan.GROUPS)
    order = [max(job.seed, 1) for job in jobs]
    assert order == sorted(order)
    assert {job.group for job in jobs if job.seed == 1} == set(plan.GROUPS)
    assert len({job.stem for job in jobs}) == len(jobs)
    # Fourteen hours of two cores are asked for.
    assert 1 < sum(map(plan.hours, jobs)) <= 28


def test_budget_share_scales_steps_and_clips_and_keeps_one():
    budget = budgets.GAPS.scaled(1e-6)
    assert (budget.train.steps, budget.clips, budget.evaluated, budget.long_clips) == (1, 1, 1, 1)
    assert budgets.DECODERS.scaled(0.5).clips == 0
    assert budgets.VARIANTS.scaled(1.0) == budgets.VARIANTS
    assert budgets.GAPS.longer(6).train.steps == 6 * budgets.GAPS.train.steps


def records(**rows):
    return {name: {str(i): {"numbers": {"x": value}} for i, value in enumerate(row)} for name, row in rows.items()}


def test_spread_is_the_sample_deviation_over_seeds():
    rows = records(a=[1.0, 3.0], b=[2.0])
    assert tables.spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert tables.cell(rows, "a", "x", 2) == "2.00 (1.41)"
    assert tables.cell(rows, "b", "x", 1) == "2.0"
    assert tables.cell(rows, "b", "y", 1) == "-"


def test_bars_start_at_zero_unless_their_ends_would_look_alike():
    assert plots.axis_range([[0.6], [1.0]])[0] == 0
    low, high = plots.axis_range([[40.1, 40.2], [40.4]])
    assert 39 < low < 40.1 < 40.4 < high


def test_a_row_without_a_drawn_number_is_left_out_of_the_picture(tmp_path):
    drawn = {gaps.BLENDING: {"0": {"numbers": {"PSNR 17": 22.0, "SSIM 17": 0.9}}}}
    unseen = {gaps.TRUTH: {"0": {"numbers": {"warping 17": 0.1}}}}
    (path,) = plots.draw_plots({gaps.GROUP: drawn}, tmp_path)
    before = path.read_bytes()
    assert plots.draw_plots({gaps.GROUP: drawn | unseen}, tmp_path) == [path]
    assert path.read_bytes() == before


def test_a_difference_inside_of_the_spread_is_none():
    assert verdicts.differs([1.0, 1.2], [2.0, 2.2]) == -1
    assert verdicts.differs([2.0, 2.2], [1.0, 1.2]) == 1
    assert verdicts.differs([1.0, 2.0], [2.0, 2.6]) == 0
    assert verdicts.differs([1.0], [2.0, 2.2]) == 0


def numbers_of(key, **rows):
    return {name: {str(i): {"numbers": {key: v}} for i, v in enumerate(row)} for name, row in rows.items()}


def test_sentence_about_variants_follows_the_numbers():
    motion = {name: [0.95, 0.96] for name in TEMPORAL_VARIANTS}
    assert "no ranking" in verdicts.variants_verdict(numbers_of("motion", **motion))
    motion["Conv1dAttn1dLayers"] = [0.5, 0.55]
    said = verdicts.variants_verdict(numbers_of("motion", **motion))
    assert "the paper, which has layers last, agrees." in said
    motion["Conv3dAttn1dBlocks"] = [0.52, 0.5]
    assert "agrees in part" in verdicts.variants_verdict(numbers_of("motion", **motion))
    motion["Conv1dAttn1dLayers"] = [0.99, 0.99]
    assert "the paper disagrees" in verdicts.variants_verdict(numbers_of("motion", **motion))
    assert "nothing ranks yet" in verdicts.variants_verdict(
        numbers_of("motion", **{name: values[:1] for name, values in motion.items()})
    )
    assert "below the 0.9" in verdicts.variants_verdict(
        numbers_of("motion", **{name: [0.5, 0.5] for name in TEMPORAL_VARIANTS})
    )


def test_sentence_about_interpolation_follows_the_numbers():
    def said(ours, longer, masked):
        rows = {gaps.OURS: ours, gaps.OURS_EQUAL_TIME: longer, gaps.MASKED: masked, gaps.BLENDING: [27.0]}
        records = numbers_of("PSNR 65", **rows)
        for seeds in records.values():
            for record in seeds.values():
                record["numbers"]["PSNR 17"] = record["numbers"]["PSNR 65"] / 2
        return verdicts.gaps_verdict(records)

    assert "ours ahead, agrees." in said([30.0, 30.1], [31.0, 31.1], [28.0, 28.1])
    assert "+4.2 dB from linear blending (+2.1 dB at 17 frames)" in said([30.0, 30.1], [31.1, 31.3], [28.0, 28.1])
    assert "ours ahead, agrees for equal time." in said([20.0, 20.1], [31.0, 31.1], [28.0, 28.1])
    assert "ours ahead, disagrees." in said([20.0, 20.1], [21.0, 21.1], [28.0, 28.1])
    assert "short of the 3 dB" in said([20.0, 20.1], [21.0, 21.1], [28.0, 28.1])
    assert "one seed cannot say" in said([20.0], [21.0], [28.0])


def test_sentence_about_decoders_follows_the_numbers():
    def said(best, others, image=40.0):
        rows = {row.name: others for row in decoders.ROWS[1:]} | {"image": [image], verdicts.BEST_DECODER: best}
        return verdicts.decoders_verdict(numbers_of("PSNR", **rows))

    assert "the paper, whose best it is, agrees;" in said([41.0, 41.1], [40.5, 40.6])
    assert "is not contradicted" in said([40.9, 41.1], [40.8, 41.0])
    assert "disagrees" in said([40.0, 40.1], [40.5, 40.6])
    assert "short of the 0.3 dB" in said([40.0, 40.1], [40.1, 40.2])
    for best, others in (([40.0], [40.5]), ([41.0, 41.1], [40.5]), ([41.0], [40.5, 40.6])):
        assert "one seed has no spread" in said(best, others)


def test_sentence_about_decoders_counts_those_that_are_better_trained_whole():
    def said(**better):
        rows = {row.name: [41.0, 41.1] for row in decoders.ROWS[1:]} | {"image": [40.0]}
        return verdicts.decoders_verdict(numbers_of("PSNR", **(rows | better)))

    assert "0 of 2 are better whole" in said()
    assert "1 of 2 are better whole" in said(conv1d=[42.0, 42.1])
    assert "2 of 2 are better whole" in said(conv1d=[42.0, 42.1], conv3d=[42.0, 42.1])


@pytest.mark.parametrize("group", plan.GROUPS)
def test_command_trains_measures_resumes_and_shows_at_a_tiny_share(tmp_path, capsys, group, monkeypatch):
    monkeypatch.setattr(budgets, "TIME_FACTOR", 1)
    monkeypatch.setattr(budgets, "KEYFRAME_SAMPLING", {"preset": "fast"})
    monkeypatch.setattr(budgets, "GAP_SAMPLING", {"preset": "fast"})
    # The fewest that have a second difference over time.
    monkeypatch.setattr(budgets, "DECODER_FRAMES", 3)
    # Of fewer than eight frames oneDNN on AMX (torch 2.13) makes no finite gradient of a 3x3x3 convolution in bfloat16.
    monkeypatch.setattr(budgets, "DECODERS", dataclasses.replace(budgets.DECODERS, dtype="float32"))
    arguments = ["--work", str(tmp_path), "--only", group, "--share", str(TINY), "--seeds", "1"]
    assert command.main([*arguments, "--budget", "0"]) == 0
    assert "the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / runs.JOBS).exists()
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    jobs = plan.GROUPS[group].jobs(runs.ExperimentRun(tmp_path, TINY, 1))
    kept = [json.loads((tmp_path / runs.JOBS / f"{job.stem}.json").read_text()) for job in jobs]
    assert np.isfinite([value for record in kept for value in record["numbers"].values()]).all()
    assert (tmp_path / f"{group}.png").stat().st_size > 1000
    if group in curves.CURVES:
        assert (tmp_path / f"{group}-curves.png").stat().st_size > 1000
    rows = {job.name for job in jobs}
    assert len([line for line in shown.splitlines() if line.startswith("| ")]) == len(rows) + 2
    assert "jobs and" not in shown

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs.ExperimentRun, "train", refuse)
    assert command.main(arguments) == 0


def test_collect_takes_what_is_done_and_drops_what_is_stale(tmp_path, monkeypatch):
    run, worked, package = runs.ExperimentRun(tmp_path), [], tmp_path / "package"
    jobs = [dataclasses.replace(untrained(name, worked), group=decoders.GROUP) for name in ("one", "two")]
    for module, name in ((command, "RESULTS"), (runs, "RESULTS"), (page, "RESULTS")):
        monkeypatch.setattr(module, name, package)
    monkeypatch.setattr(command, "jobs_of", lambda *_: jobs)
    monkeypatch.setattr(page, "PAGE", package / "README.md")
    (package / runs.JOBS).mkdir(parents=True)
    (package / "README.md").write_text("# Page\n<!-- decoders -->\nold\n<!-- end of decoders -->\n")
    (package / runs.JOBS / "stale.json").write_text("{}")
    runs.finish(run, jobs[0])
    command.collect(run)
    assert [path.name for path in (package / runs.JOBS).iterdir()] == [f"{jobs[0].stem}.json"]
    text = (package / "README.md").read_text()
    assert "1 of 2 jobs and 0 of 1 seeds are in." in text
    assert "old" not in text
    # Once more, from a folder that has nothing: what the package holds stays.
    command.collect(runs.ExperimentRun(tmp_path / "empty"))
    assert len(list((package / runs.JOBS).iterdir())) == 1


def test_command_refuses_to_run_without_a_folder(capsys):
    with pytest.raises(SystemExit):
        command.main([])
    assert "expected --work FOLDER" in capsys.readouterr().err
