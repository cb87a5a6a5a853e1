"""What README promises and CI runs must be the same lines."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from fusionframes.ff_kernels import __version__
from fusionframes.ff_kernels.cli import build_parser
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


def test_package_changelog_and_engine_name_one_version():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert __version__ == declared == newest[1]
