import json
from dataclasses import asdict

import pytest
from PIL import ImageDraw
from support import release

from fusionframes.ff_kernels.bench.quality import (
    Extent,
    mean_and_error,
    measure_against_released,
    measure_preset,
    measure_truth,
    spread_px,
    time_presets,
)
from fusionframes.ff_kernels.bench.quality_report import RESULTS, TRUTH, plot, read_results, table, write_results
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.demo.world.measure import Agreement
from fusionframes.ff_kernels.demo.world.scenes import Scene
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.stages.presets import PRESETS

SMALL = Extent(captions=2, seeds=1, videos=1, truths=1)
QUIET = lambda text: None  # noqa: E731
PAGE = RESULTS.parents[2] / "bench/QUALITY.md"


def seen(motion, *places):
    scenes = [Scene("small", "red", "circle", motion, "black")] * len(places)
    return scenes, [Agreement({"all": True}, 1.0, 0.0, place) for place in places]


def test_spread_counts_only_the_axis_that_a_motion_leaves_free():
    # Along its way an object is where its caption puts it: 10 px there are no variety.
    scenes, clips = seen("left", (10, 30), (20, 34), (30, 38))
    assert spread_px(scenes, clips) == pytest.approx(4.0)
    scenes, clips = seen("stays", (10, 30), (20, 34), (30, 38))
    assert spread_px(scenes, clips) == pytest.approx(((10**2 + 4**2) / 2) ** 0.5)


def test_spread_leaves_out_clips_without_an_object():
    scenes, clips = seen("up", (10, 0), None, (14, 0))
    assert spread_px(scenes, clips) == pytest.approx(8**0.5)


def test_standard_error_falls_with_the_root_of_the_runs():
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert mean_and_error([5.0]) == (5.0, 0.0)


def test_true_clips_are_right_and_differ_as_the_world_does():
    figures = measure_truth(Extent(captions=24, seeds=1, videos=1, truths=1))
    assert figures["all_right"] == 1.0
    assert figures["shape_iou"] > 0.9
    assert 4 < figures["spread_px"] < 9


def test_a_preset_of_the_demo_has_every_figure():
    figures = measure_preset(demo_pipeline(), "fast", SMALL, QUIET)
    assert figures["interpolation_db"] > figures["blend_db"] > 20
    assert figures["shape_iou"] > 0.7
    assert figures.keys() == {
        "all_right", "shape_iou", "color_rmse", "spread_px", "spread_error_px", "jerk", "warping_error",
        "interpolation_db", "blend_db",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["1.0", "1.1"])
def test_weights_without_a_grader_are_measured_against_the_released_run(tmp_path, family):
    release.write(tmp_path, family)
    settings = Settings(fps="medium", width=16, height=24, steps=2, interpolation_steps=2)
    rows = measure_against_released(Pipeline.from_folder(tmp_path), ["fast"], ["a red car"], 2, settings, QUIET)
    assert list(rows) == ["released", "fast"]
    assert "psnr_to_released_db" in rows["fast"].keys() - rows["released"].keys()
    assert all(row["variety"] > 0 and row["seconds"] > 0 for row in rows.values())


def test_variety_wants_two_seeds():
    with pytest.raises(InputError, match="1 prompts and 1"):
        measure_against_released(None, ["fast"], ["a red car"], 1, Settings(), QUIET)


def test_an_extent_that_gives_no_figure_is_named():
    with pytest.raises(InputError, match="2 or more captions to measure, got 1"):
        Extent(captions=1)


def test_presets_are_timed_in_turn():
    assert time_presets(demo_pipeline(), ["fast"], "a small red circle stays on a black background", 1)["fast"] > 0


ROWS = {
    "released": {"seconds": 9.0, "all_right": 1.0, "spread_px": 5.3, "spread_error_px": 0.2, "jerk": 6.6},
    "fast": {"seconds": 1.2, "all_right": 1.0, "spread_px": 4.9, "spread_error_px": 0.1, "jerk": 6.1},
    TRUTH: {"spread_px": 6.4, "jerk": 1.3},
}


def test_table_has_a_dash_where_nothing_was_measured():
    lines = table(ROWS)
    assert lines[0].count("|") == lines[2].count("|") == 7
    assert lines[-1].startswith("| true clips | - | - | 6.40 |")


def test_results_are_kept_with_their_picture(tmp_path):
    write_results({"rows": ROWS}, tmp_path / "q.json")
    assert read_results(tmp_path / "q.json") == {"rows": ROWS}
    assert plot(ROWS).size == (840, 260)
    assert (tmp_path / "q.png").stat().st_size > 1000


def test_names_of_near_dots_do_not_lie_on_each_other(monkeypatch):
    boxes, draw_text = [], ImageDraw.ImageDraw.text

    def text(draw, at, words, **options):
        if words in ("fast", "balanced"):
            boxes.append(draw.textbbox(at, words, font=options["font"], anchor=options["anchor"]))
        draw_text(draw, at, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    seconds = {"fast": 0.9, "balanced": 1.0, "released": 4.0}
    plot({name: {"seconds": value, "spread_px": 5 + value / 100} for name, value in seconds.items()})
    one, other = boxes
    assert one[3] <= other[1] or other[3] <= one[1] or one[2] <= other[0] or other[2] <= one[0]


def test_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "q.json").write_text('{"rows": 3}')
    with pytest.raises(InputError, match=r"q\.json"):
        read_results(tmp_path / "q.json")


def test_time_alone_leaves_every_other_figure_as_it_was(tmp_path, capsys):
    rows = {"fast": {**ROWS["fast"], "seconds": 99.0}, TRUTH: ROWS[TRUTH]}
    write_results({"rows": rows, "extent": asdict(SMALL)}, tmp_path / "q.json")
    assert main(["bench", "--quality", "--time", "--repeats", "1", "--results", str(tmp_path / "q.json")]) == 0
    kept = json.loads((tmp_path / "q.json").read_text())
    assert kept["rows"]["fast"].pop("seconds") < 60
    assert kept["rows"]["fast"] == {k: v for k, v in ROWS["fast"].items() if k != "seconds"}
    assert "| fast |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--time"], "--time with --results"),
        (["--results", "q.txt"], "q.txt"),
        (["--captions", "1"], "2 or more captions"),
    ],
    ids=["time_of_nothing", "suffix", "captions"],
)
def test_wrong_options_are_one_sentence(arguments, named, capsys):
    assert main(["bench", "--quality", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_page_beside_the_code_shows_the_committed_results():
    page = PAGE.read_text(encoding="utf-8")
    results = read_results()
    assert "\n".join(table(results["rows"])) in page
    assert results["timed_on"] in page
    assert results["rows"].keys() == {*PRESETS, TRUTH}
    assert f"{results['extent']['captions']} held-out captions, {results['extent']['seeds']} seeds" in page
