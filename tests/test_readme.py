"""What README promises must be true: its commands are those of CI, its lines run, its tables are the tree's."""

import csv
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from fusionframes.ff_kernels import __version__
from fusionframes.ff_kernels.cli.main import build_parser
from fusionframes.ff_kernels.demo import model, recipe
from fusionframes.ff_kernels.demo.model import DEFAULTS
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.models.configs import POSITION_UNITS_V10
from fusionframes.ff_kernels.stages.releases import DEMO_GUIDANCE_SCALE, V10, V11

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("ff_kernels", "nodes", "workflows", "tests")
PATHS = [ROOT / "README.md", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md"))]
PAGES = {path: path.read_text(encoding="utf-8") for path in PATHS}
PARTS = [
    "ComfyUI",
    "Command line",
    "Python",
    "Which card, and how long",
    "The real models",
    "Templates",
    "Tests",
    "License",
]
COMMANDS = [line for line in README.splitlines() if line.startswith("pip install -c")]


def test_readme_has_two_setup_commands_and_ci_runs_both_verbatim():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert len(COMMANDS) == 2
    assert all(command in ci for command in COMMANDS)


CALL = re.compile(r"(?:^|`|&& )(fusionframes (?:generate|convert|verify|info|evaluate|bench) [^`|\n#]+)", re.MULTILINE)
LINES = sorted({line.strip() for page in PAGES.values() for line in CALL.findall(page)})


@pytest.mark.parametrize("line", [line for line in LINES if not line.endswith("--help")])
def test_readme_command_lines_parse(line):
    try:
        build_parser().parse_args(shlex.split(line)[1:])
    except InputError as error:
        pytest.fail(f"{line}: {error}")


def test_readme_is_one_screen_after_the_other_and_begins_with_a_moving_picture():
    assert re.findall(r"^## (.+)$", README, re.MULTILINE) == PARTS
    assert README.count("\n") <= 120
    first = ROOT / re.search(r"!\[[^\]]*\]\(([^)]+)\)", README.split("## ComfyUI")[0])[1]
    assert first.stat().st_size < 1e6
    with Image.open(first) as picture:
        assert picture.n_frames > 1


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_exist(page):
    targets = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGES[page]) if "://" not in link]
    assert [link for link in targets if not (page.parent / link).exists()] == []


def test_lines_of_python_write_the_video(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 5
    monkeypatch.chdir(tmp_path)
    # The lines as they are; only the model's own settings are quicker.
    monkeypatch.setattr(model, "DEFAULTS", dataclasses.replace(model.DEFAULTS, fps="medium", steps=2))
    exec(code, {})
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_engine_is_imported_without_what_it_does_not_need_yet():
    code = "import sys, fusionframes.ff_kernels as engine; print('torch' in sys.modules, engine.Pipeline.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "Pipeline"], done.stderr
    with pytest.raises(ImportError, match="Nothing"):
        from fusionframes.ff_kernels import Nothing  # noqa: F401


def test_templates_of_readme_and_of_their_page_are_those_of_the_folder():
    folder = ROOT / "workflows"
    shipped = {path.stem for path in folder.glob("*.json")}
    for page in (README.split("## Templates")[1], PAGES[folder / "README.md"]):
        assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == shipped


def test_processor_times_are_the_newest_of_the_history():
    bench = ROOT / "ff_kernels" / "bench"
    with (bench / "history.csv").open(encoding="utf-8", newline="") as file:
        newest = {row["workload"]: row for row in csv.DictReader(file)}
    rows = re.findall(
        r"^\| `([\w-]+-cpu)`.*? \| ([\d.]+) s \| ([\d.]+) s \| ([\d.]+) ", PAGES[bench / "README.md"], re.MULTILINE
    )
    assert len(rows) == 3
    for name, release, ours, ratio in rows:
        row = newest[name]
        assert (release, ours) == (f"{float(row['reference_seconds']):.2f}", f"{float(row['ours_seconds']):.2f}")
        assert ratio == f"{float(row['ratio']):.2f}"
    rounded = [f"{float(ratio):.1f}" for *_, ratio in rows]
    assert "are {}, {} and {} times as fast".format(*rounded) in README


def test_weights_of_the_demo_are_as_large_as_the_pages_say():
    size = sum(path.stat().st_size for path in (ROOT / "ff_kernels" / "demo" / "weights").rglob("*") if path.is_file())
    assert f"| demo model | {size / 1e6:.0f} MB |" in README
    assert f"{size / 1e6:.0f} MB of weights" in PAGES[ROOT / "ff_kernels" / "demo" / "README.md"]


NUMBERS = {
    "w10": V10.keyframe.guidance_scale, "w11": V11.keyframe.guidance_scale, "wi": V11.image_guidance,
    "demo": DEMO_GUIDANCE_SCALE, "gaps10": V10.interpolation.guidance_scale, "gaps11": V11.interpolation.guidance_scale,
    "s10": V10.keyframe.steps, "s11": V11.keyframe.steps, "t10": V10.interpolation.steps,
    "t11": V11.interpolation.steps,
    "k10": V10.keyframes, "k11": V11.keyframes, "kdemo": recipe.KEYFRAMES.num_frames, "most": POSITION_UNITS_V10,
    "noise": V11.noise_level, "motion": V11.motion_score,
}  # fmt: skip
# What pages say a release runs with, in the words of ``releases.py``.
SAID = {
    "README.md": [
        "| 1.0 | {k10} from text |", "| {w10:g} (a \"cfg\" of 6) | {s10} and {t10} |",
        "| 1.1 | {k11} from text or `--image` |", "| {w11:g}, image {wi:g} | {s11} and {t11} |",
        "| demo | {kdemo} from text |", "| {demo:g} | {s10} and {t10} |",
    ],
    "nodes/web/docs/FusionFramesKeyframeSampler.md": [
        "default {w10:g} | Text guidance w. The releases use {w10:g}, the demo model wants {demo:g}.",
        "default {wi:g} | Weight wi", "the release uses {wi:g}.", "at most {most} keyframes for release 1.0",
    ],
    "nodes/web/docs/FusionFramesDualGuider.md": ["default {w11:g} | Text", "default {wi:g} | First-frame"],
    "nodes/web/docs/FusionFramesImageToVideo.md": [
        "default {k11} |", "trained on {k11}.", "default {motion}: medium |",
        "default {noise} | Noise on the picture; the release uses {noise}.",
    ],
    "nodes/web/docs/FusionFramesInterpolate.md": [
        "default {gaps10:g} | Guidance w: {gaps10:g} for release 1.0 and the demo, {gaps11:g} for release 1.1.",
        "For release 1.1 set `steps` {t11} and `guidance_scale` {gaps11:g}.", "default {t10} |",
    ],
    "nodes/web/docs/FusionFramesMaskedInterpolate.md": [
        "default {gaps10:g} | Guidance w: {gaps10:g} for release 1.0 and the demo, {gaps11:g} for release 1.1.",
        "For release 1.1 set `steps` {t11} and `guidance_scale` {gaps11:g}.", "default {t10} |",
    ],
    "nodes/web/docs/FusionFramesEmptyLatent.md": ["{k10}", "{k11}", "{kdemo}"],
}  # fmt: skip


@pytest.mark.parametrize("page", SAID)
def test_pages_name_the_numbers_that_the_releases_run_with(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [said for said in (words.format(**NUMBERS) for words in SAID[page]) if said not in text] == []


def test_demo_samples_with_its_own_guidance_everywhere():
    assert DEFAULTS.guidance_scale == DEMO_GUIDANCE_SCALE
    for name in ("text_to_video_demo", "compare_videos"):
        graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        samplers = [node for node in graph.values() if node["class_type"] == "FusionFramesKeyframeSampler"]
        assert [node["inputs"]["guidance_scale"] for node in samplers] == [DEMO_GUIDANCE_SCALE]


def test_help_of_the_command_needs_no_torch_and_names_the_releases_numbers():
    code = "import sys; from fusionframes.ff_kernels.cli.main import main; main(sys.argv[1:])"
    script = f"try:\n    {code}\nexcept SystemExit:\n    sys.exit(int('torch' in sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}", "generate", "--help"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    said = " ".join(ran.stdout.split())
    numbers = ("default {s10}; with", "default {t10}; 1.1: {t11}", "default {w10:g}, demo {demo:g}", "default {wi:g}",
               "default {gaps10:g}; 1.1: {gaps11:g}")  # fmt: skip
    assert all(number.format(**NUMBERS) in said for number in numbers)


def test_package_changelog_and_engine_name_one_version():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    newest = re.search(
        r"^## (\S+), \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert __version__ == declared == newest[1]
