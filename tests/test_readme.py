"""What README promises and CI runs must be the same lines."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fusionframes.ff_kernels import __version__
from fusionframes.ff_kernels.cli.main import build_parser
from fusionframes.ff_kernels.demo import recipe
from fusionframes.ff_kernels.demo.model import DEFAULTS
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.models.configs import POSITION_UNITS_V10
from fusionframes.ff_kernels.stages.releases import DEMO_GUIDANCE_SCALE, V10, V11

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for line in README.splitlines() if line.startswith("pip install -c")]


def test_readme_has_two_setup_commands_and_ci_runs_both_verbatim():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert len(COMMANDS) == 2
    assert all(command in ci for command in COMMANDS)


LINES = sorted(set(re.findall(r"(fusionframes (?:generate|convert|verify|info|evaluate|bench) [^`|\n]+)", README)))


@pytest.mark.parametrize("line", [line for line in LINES if not line.endswith("--help")])
def test_readme_command_lines_parse(line):
    try:
        build_parser().parse_args(shlex.split(line)[1:])
    except InputError as error:
        pytest.fail(f"{line}: {error}")


def test_readme_pictures_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).stat().st_size > 0 for picture in pictures)


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
    numbers = ("default {s10}; interpolation of 1.1: {t11}", "default {w10:g}, demo {demo:g}", "default {wi:g}",
               "default {gaps10:g}; 1.1: {gaps11:g}")  # fmt: skip
    assert all(number.format(**NUMBERS) in said for number in numbers)


def test_package_changelog_and_engine_name_one_version():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert __version__ == declared == newest[1]
