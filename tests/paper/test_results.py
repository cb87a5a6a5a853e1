"""What the page of the comparisons says is what the committed numbers hold, and the package can make again."""

import json
import re

import pytest

from fusionframes.ff_kernels.bench.quality_report import RESULTS as QUALITY
from fusionframes.ff_kernels.bench.quality_report import read_results
from fusionframes.ff_kernels.models.configs import MIXED_VARIANT
from fusionframes.ff_kernels.paper import (
    RESULTS,
    budgets,
    command,
    curves,
    decoders,
    gaps,
    page,
    plan,
    runs,
    tables,
    variants,
)
from fusionframes.ff_kernels.paper.verdicts import BEST_DECODER, presets_verdict

PAGE = page.PAGE.read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
RUN = runs.ExperimentRun(RESULTS)
JOBS = plan.jobs_of(RUN, plan.GROUPS)
FILES = sorted((RESULTS / runs.JOBS).glob("*.json"))


@pytest.fixture(scope="module")
def done():
    return plan.gather(RUN, JOBS)


def test_page_is_what_the_committed_numbers_make_of_it(done):
    assert page.render(PAGE, done, JOBS) == PAGE
    for name in (*plan.GROUPS, page.PRESETS):
        assert PAGE.count(f"<!-- {name} -->") == PAGE.count(f"<!-- end of {name} -->") == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_numbers_were_made_by_the_packages_recipe(path):
    job = next(job for job in JOBS if job.stem == path.stem)
    assert runs.agree(json.loads(path.read_text(encoding="ascii"))["key"], job.key)


@pytest.mark.parametrize("group", plan.GROUPS)
def test_every_table_has_a_complete_seed(group, done):
    assert page.is_ranked(group, done, JOBS)


def test_pictures_are_there_where_numbers_rank(done):
    wanted = {f"{group}.png" for group in plan.GROUPS if page.is_ranked(group, done, JOBS)}
    wanted |= {f"{group}-curves.png" for group in curves.CURVES if page.is_ranked(group, done, JOBS)}
    assert {path.name for path in RESULTS.glob("*.png")} == wanted
    assert set(re.findall(r"\]\(results/([\w-]+\.png)\)", PAGE)) == wanted


def test_page_says_the_budgets_of_the_package():
    for budget in (budgets.VARIANTS, budgets.GAPS, budgets.DECODERS):
        assert f"{budget.train.steps} steps of {budget.train.batch} clips" in TEXT
    assert (
        f"{budgets.VARIANTS.evaluated} held-out captions, of which one weighs {1 / budgets.VARIANTS.evaluated:.2f}"
        in TEXT
    )
    assert f"{budgets.GAPS.evaluated} of 17 frames and {budgets.GAPS.long_clips} of 65" in TEXT
    assert f"{budgets.DECODERS.evaluated} held-out clips of {budgets.DECODER_FRAMES} frames" in TEXT
    assert f"in {budgets.DECODERS.dtype} with the optimiser's weights in float32" in TEXT
    assert f"trains ours {budgets.TIME_FACTOR * budgets.GAPS.train.steps} steps" in TEXT
    said = "`{preset}`, but with {steps} steps of `{solver}` for the keyframes and {interpolation_steps} of"
    said += " `{interpolation_solver}` for the interpolation"
    assert said.format(**(budgets.KEYFRAME_SAMPLING | budgets.GAP_SAMPLING)) in TEXT


def test_page_says_the_counted_share():
    counted = gaps.count_costs()
    assert f"ours needs {counted['ours'].flops / counted['masked'].flops:.2f} of the work" in TEXT


def test_sentence_about_presets_follows_from_the_kept_figures():
    rows = read_results(QUALITY)["rows"]
    assert presets_verdict(rows) in TEXT
    released = rows["released"]
    assert f"Balanced takes {rows['balanced']['seconds']:.2f} of {released['seconds']:.2f} s" in TEXT


def test_page_commands_parse():
    lines = re.findall(r"python -m fusionframes\.ff_kernels\.paper ([^`#\n]+)", PAGE)
    asked = [command.build_parser().parse_args(line.split()) for line in lines]
    assert {group for options in asked for group in options.only or ()} == {*plan.GROUPS, command.PRESETS}


def test_the_papers_last_variant_is_the_one_that_verdicts_hold_to_be_it():
    # Table 1: the lowest CLIPSIM and the highest FVD.
    assert min(variants.PAPER, key=lambda name: variants.PAPER[name][2]) == MIXED_VARIANT
    assert max(variants.PAPER, key=lambda name: variants.PAPER[name][1]) == MIXED_VARIANT


def test_what_the_sentence_about_decoders_says_of_the_paper_is_in_its_table():
    psnr = {row.name: row.paper[0] for row in decoders.ROWS}
    assert max(psnr, key=psnr.get) == BEST_DECODER
    assert psnr["conv1d"] > psnr["conv1d-temporal"]
    assert psnr["conv3d"] > psnr["conv3d-temporal"]


def test_every_table_has_a_maker_and_a_mark():
    assert set(tables.MAKERS) == set(plan.GROUPS)
