"""The house rules: who may import whom, how long a file is, what must not appear."""

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "ff_kernels"
SOURCES = [*sorted(p for folder in (ENGINE, ROOT / "nodes") for p in folder.rglob("*.py")), ROOT / "__init__.py"]
INIT = "__init__.py"
TOP_LEVEL = {"nodes", "ff_kernels", "workflows", "tests", "__init__.py", "pyproject.toml", "README.md", "LICENSE",
             "CHANGELOG.md", ".ci", ".gitignore", ".comfyignore"}  # fmt: skip
# Room to the rooms it may import from; a file of the top floor is named by its stem.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "ops": {"errors"},
    "models": {"ops", "errors"},
    "sampling": {"errors", "ops"},
    "runtime": {"errors", "ops"},
    "media": {"errors", "files"},
    "metrics": {"errors", "media"},
    "stages": {"errors", "models", "sampling"},
    "checkpoints": {"errors", "files", "models", "ops"},
    "verify": {"checkpoints", "errors", "models", "ops", "sampling", "stages"},
    "pipeline": {"checkpoints", "errors", "media", "models", "runtime", "sampling", "stages"},
    "bench": {"checkpoints", "errors", "models", "ops", "runtime", "sampling", "stages"},
    "training": {"errors", "files", "models", "sampling"},
    "demo": {
        "checkpoints",
        "errors",
        "files",
        "media",
        "metrics",
        "models",
        "pipeline",
        "sampling",
        "stages",
        "training",
    },
    "paper": {
        "bench",
        "checkpoints",
        "demo",
        "errors",
        "files",
        "media",
        "metrics",
        "models",
        "pipeline",
        "stages",
        "training",
    },
    "cli": {"bench", "checkpoints", "demo", "errors", "media", "metrics", "ops", "pipeline", "runtime", "verify"},
    "__main__": {"cli"},
    "__init__": set(),
}
BANNED_FUNCTIONS = {"eval", "exec"}
BANNED_METHODS = {"autocast", "cuda"}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the engine that a file imports by relative imports."""
    depth = len(path.relative_to(ENGINE).parts)
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > depth:
                rooms.add("outside")
            elif node.level == depth:
                rooms |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", sorted(ENGINE.rglob("*.py")), ids=lambda p: str(p.relative_to(ENGINE)))
def test_engine_file_imports_only_from_the_rooms_below(path):
    room = path.relative_to(ENGINE).parts[0].removesuffix(".py")
    assert imported_rooms(path) - {room} <= ALLOWED[room]


def test_layout_test_catches_a_planted_upward_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ENGINE", tmp_path)
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "bad.py").write_text("from ..pipeline import Pipeline\nfrom ...nodes import x\n")
    assert imported_rooms(tmp_path / "ops" / "bad.py") == {"pipeline", "outside"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_source_is_ascii_short_and_free_of_banned_calls(path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    # A page over 400 lines is two rooms; 450 leaves the author a few lines to notice.
    assert text.count("\n") <= 450
    tree = ast.parse(text)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {call.id for call in calls if isinstance(call, ast.Name)} & BANNED_FUNCTIONS
    assert not {call.attr for call in calls if isinstance(call, ast.Attribute)} & BANNED_METHODS
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    foreign = {alias.name.split(".")[0] for node in plain for alias in node.names}
    foreign |= {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
    }
    assert not foreign & {"diffusers", "transformers", "accelerate", "fusionframes"}
    # One file per foreign surface: core's node API, core's internals.
    surfaces = {"comfy_api": "_api.py", "comfy": "_compat.py", "folder_paths": "_compat.py", "server": "_compat.py"}
    surfaces |= {"latent_preview": "_compat.py", "nodes": "_compat.py"}
    assert all(path == ROOT / "nodes" / surfaces[name] for name in foreign & surfaces.keys())
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert all("weights_only=True" in ast.unparse(load) for load in loads)


def test_top_level_holds_what_the_layout_names():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} <= TOP_LEVEL


def test_weights_of_the_demo_fit_the_package():
    size = sum(p.stat().st_size for p in (ENGINE / "demo" / "weights").iterdir())
    assert 0 < size <= 16e6


def test_every_package_of_the_tree_is_installed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(["fusionframes", *path.relative_to(ROOT).parent.parts]) for path in SOURCES if path.name == INIT}
    assert set(setup["packages"]) == found
    assert len(setup["packages"]) == len(found)
