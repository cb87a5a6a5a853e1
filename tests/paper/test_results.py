"""What the page of the comparisons says is what the committed results hold, and the package can make again."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from fusionframes.ff_kernels.bench.gap_costs import count_gaps
from fusionframes.ff_kernels.models.configs import MIXED_VARIANT, TEMPORAL_VARIANTS
from fusionframes.ff_kernels.paper import RESULTS, budgets, command, gaps, runs, tables, variants

PAGE = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
RESULT = command.load_results(RESULTS)
MAKERS = {"variants": tables.variant_table, "gaps": tables.gap_table, "decoders": tables.decoder_table}


@pytest.mark.parametrize("group", MAKERS)
def test_page_shows_every_line_of_the_committed_results(group):
    lines = MAKERS[group](RESULT)
    assert len(lines) > 5
    assert [line for line in lines if line not in PAGE] == []


@pytest.mark.parametrize("group", MAKERS)
def test_results_were_made_with_the_packages_budgets_and_every_row_has_the_same_seeds(group):
    rows = RESULT[group]["rows"]
    seeds = sorted({int(seed) for row in rows.values() for seed in row} - {0})
    assert len(seeds) > 1
    jobs = command.GROUPS[group].jobs(runs.ExperimentRun(Path("unused"), 1.0, tuple(seeds)))
    assert {(job.name, str(job.seed)) for job in jobs} == {(name, seed) for name in rows for seed in rows[name]}
    assert RESULT[group]["settings"] == json.loads(json.dumps(jobs[-1].settings))
    title = {"variants": "Temporal variants", "gaps": "Interpolation", "decoders": "Decoders"}[group]
    assert f"## {title}, {len(seeds)} seeds" in PAGE


def test_page_says_the_budgets_of_the_package():
    for budget in (budgets.VARIANTS, budgets.GAPS, budgets.DECODERS):
        assert f"{budget.train.steps} steps of {budget.train.batch} clips" in TEXT
    assert f"{budgets.VARIANTS.evaluated} held-out captions" in TEXT
    assert f"{budgets.DECODERS.evaluated} held-out clips" in TEXT
    assert f"{budgets.TIME_FACTOR * budgets.GAPS.train.steps} steps" in TEXT


def test_page_says_the_counted_share_and_the_recorder_still_counts_it():
    kept, counted = {name: costs["flops"] for name, costs in RESULT["cost"].items()}, count_gaps()
    assert kept == {name: cost.flops for name, cost in counted.items()}
    assert dataclasses.asdict(counted["ours"])["parameters"] == RESULT["cost"]["ours"]["parameters"]
    assert f"{kept['ours'] / kept['masked']:.2f} of the work" in TEXT


def test_page_says_the_measured_times():
    seconds = RESULT["seconds"]
    assert f"{seconds[gaps.OURS]:.1f} against {seconds[gaps.MASKED]:.1f} s" in TEXT


@pytest.mark.parametrize("group", MAKERS)
def test_plot_of_every_group_is_shown(group):
    assert f"](results/{group}.png)" in PAGE
    assert (RESULTS / f"{group}.png").stat().st_size > 1000


def test_page_commands_parse():
    lines = re.findall(r"python -m fusionframes\.ff_kernels\.paper ([^`\n]+)", PAGE)
    assert len(lines) >= 3
    asked = [command.build_parser().parse_args(line.split()) for line in lines]
    assert {group for options in asked for group in options.only or ()} == set(MAKERS)


def means(group, key):
    rows = RESULT[group]["rows"]
    return {name: tables.spread(rows, name, key) for name in rows}


def test_sentence_about_decoders_follows_from_the_numbers():
    psnr = means("decoders", "PSNR")
    image = psnr.pop("image")[0]
    assert all(mean - deviation < image for mean, deviation in psnr.values())
    assert all(sum(psnr[name]) < image for name in ("conv3d-temporal", "conv3d", "conv3d-attn", "inflated"))


def test_sentences_about_interpolation_follow_from_the_numbers():
    for key in ("PSNR 17", "PSNR 65"):
        psnr = means("gaps", key)
        (ours, _), (longer, spread), (masked, its_spread) = (
            psnr[n] for n in (gaps.OURS, gaps.OURS_EQUAL_TIME, gaps.MASKED)
        )
        assert ours < masked - its_spread
        assert longer - spread > masked + its_spread
        assert max(longer, masked) < psnr[gaps.BLENDING][0]
        assert psnr[gaps.BLENDING][0] < psnr[gaps.SHIPPED][0]


def test_sentences_about_variants_follow_from_the_numbers():
    background, motion = means("variants", "background"), means("variants", "motion")
    mixed = sum(background[MIXED_VARIANT])
    assert all(background[name][0] - background[name][1] > mixed for name in TEMPORAL_VARIANTS if name != MIXED_VARIANT)
    assert all(abs(motion[name][0] - 1 / 8) < 0.1 for name in TEMPORAL_VARIANTS)
    # Paper, table 1: the lowest CLIPSIM and the highest FVD.
    assert min(variants.PAPER, key=lambda name: variants.PAPER[name][2]) == MIXED_VARIANT
    assert max(variants.PAPER, key=lambda name: variants.PAPER[name][1]) == MIXED_VARIANT
