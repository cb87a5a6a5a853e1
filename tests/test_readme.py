"""What README promises and CI runs must be the same lines."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from fusionframes.ff_kernels import __version__
from fusionframes.ff_kernels.cli.main import build_parser
from fusionframes.ff_kernels.errors import InputError

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


def test_every_place_names_the_guidance_that_the_demo_samples_with():
    from fusionframes.ff_kernels.demo.model import DEFAULTS

    scale = f"{DEFAULTS.guidance_scale:g}"
    page = (ROOT / "nodes" / "web" / "docs" / "FusionFramesKeyframeSampler.md").read_text(encoding="utf-8")
    assert re.search(r"^\| demo \|.*\| (\S+) \| 50 and 50 \|", README, re.MULTILINE)[1] == scale
    assert f"(default 5, demo {scale})" in (ROOT / "ff_kernels" / "cli" / "main.py").read_text(encoding="utf-8")
    assert f"The demo model wants {scale}." in (ROOT / "nodes" / "sampling.py").read_text(encoding="utf-8")
    assert f"the demo model wants {scale}." in page
    assert f"{DEFAULTS.guidance_scale + 1:g} for the demo model" in page
    for name in ("text_to_video_demo", "compare_videos"):
        graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        samplers = [node for node in graph.values() if node["class_type"] == "FusionFramesKeyframeSampler"]
        assert [node["inputs"]["guidance_scale"] for node in samplers] == [DEFAULTS.guidance_scale]


def test_package_changelog_and_engine_name_one_version():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert __version__ == declared == newest[1]
