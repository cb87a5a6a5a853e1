"""The house rules: who may import whom, how long a file is, what must not appear."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "ff_kernels"
SOURCES = [*sorted(p for folder in (ENGINE, ROOT / "nodes") for p in folder.rglob("*.py")), ROOT / "__init__.py"]
INIT = "__init__.py"
TOP_LEVEL = {"nodes", "ff_kernels", "workflows", "tests", "__init__.py", "pyproject.toml", "README.md", "LICENSE",
             "CHANGELOG.md", "CONTRIBUTING.md", ".ci", ".github", ".gitignore", ".comfyignore"}  # fmt: skip
# Room to the rooms it may import from; a file of the top floor is named by its stem.
DOORS = {
    "errors": "",
    "files": "errors",
    "ops": "errors",
    "models": "errors ops",
    "sampling": "errors ops",
    "runtime": "errors ops",
    "media": "errors files",
    "metrics": "errors media",
    "stages": "errors models sampling",
    "checkpoints": "errors files models ops",
    "verify": "checkpoints errors models ops sampling stages",
    "pipeline": "checkpoints errors files media models ops runtime sampling stages",
    "bench": "checkpoints demo errors files metrics models ops pipeline runtime sampling stages training",
    "training": "checkpoints errors files media models pipeline runtime sampling stages",
    "demo": "checkpoints errors files media metrics models pipeline sampling stages training",
    "paper": "bench checkpoints demo errors files media metrics models pipeline runtime stages training",
    "batch": "bench checkpoints demo errors files media models pipeline runtime sampling stages",
    "cli": "batch bench checkpoints demo errors media metrics ops pipeline runtime stages training verify",
    "__main__": "cli",
    "__init__": "",
}
ALLOWED = {room: set(doors.split()) for room, doors in DOORS.items()}
BANNED_FUNCTIONS = {"eval", "exec"}
CARDS = re.compile(r"torch\.(cuda|mps|xpu|npu)\b")
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


def eager_imports(path: Path) -> list[str]:
    """Modules of ``ops.eager`` that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    return [module for module in named if "ops.eager" in module]


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if ENGINE / "ops" not in path.parents], ids=lambda p: str(p.relative_to(ROOT))
)
def test_formulas_are_taken_from_the_door_of_ops(path):
    assert eager_imports(path) == []


def test_door_of_ops_test_catches_a_planted_import(tmp_path):
    (tmp_path / "bad.py").write_text("from ..ops.eager.step import mix_branches\n")
    assert eager_imports(tmp_path / "bad.py") == ["ops.eager.step"]


def test_only_the_runtime_and_the_kernels_ask_torch_about_cards():
    places = {path.relative_to(ENGINE).parts[:-1] for path in SOURCES if CARDS.search(path.read_text(encoding="utf-8"))}
    assert places <= {("runtime",), ("ops", "triton")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_source_is_ascii_short_and_free_of_banned_calls(path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    # A page over 400 lines is two rooms.
    assert text.count("\n") <= 400
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
    size = sum(path.stat().st_size for path in (ENGINE / "demo" / "weights").rglob("*"))
    assert 10e6 < size <= 16e6


def test_every_package_of_the_tree_is_installed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(["fusionframes", *path.relative_to(ROOT).parent.parts]) for path in SOURCES if path.name == INIT}
    assert set(setup["packages"]) == found
    assert len(setup["packages"]) == len(found)


PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
PAGES = sorted({*ROOT.glob("*.md"), *ENGINE.rglob("*.md"), *(ROOT / "nodes").rglob("*.md")})
CITATION = re.compile(r"""(?<![\w./*])((?:[\w.-]+/)*[\w-]+\.md)(?:, "([^"]+)")?""")


def broken_citations(path: Path) -> list[str]:
    """Return the pages and headings that a file cites and the tree does not hold."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        # A citation may go on in the next line of a comment.
        text = re.sub(r"\s*\n\s*(?:#\s*)?", " ", text)
    broken = []
    for name, heading in CITATION.findall(" ".join(text.split())):
        places = [folder / name for folder in (*path.parents, ENGINE) if folder.is_relative_to(ROOT)]
        page = next((place for place in places if place.is_file()), None)
        headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE) if page else []
        if page is None or (heading and heading not in headings):
            broken.append(f"{name}, {heading}" if heading else name)
    return broken


# Names of files in the tests' own made-up folders.
MADE_UP = {"tests/test_model_files.py", "tests/test_layout.py", "tests/test_readme.py"}


@pytest.mark.parametrize("path", [*PYTHON, *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_cited_pages_and_headings_are_in_the_tree(path):
    if path.relative_to(ROOT).as_posix() not in MADE_UP:
        assert broken_citations(path) == []


def test_citations_of_a_missing_page_or_heading_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "ENGINE", tmp_path)
    (tmp_path / "NOTES.md").write_text("# Notes\n\n## A heading of two lines\n")
    planted = tmp_path / "planted.py"
    planted.write_text(
        '"""See NOTES.md, "No such heading", and facts.md."""\n# As in NOTES.md, "A heading of\n# two lines".\n'
    )
    assert broken_citations(planted) == ["NOTES.md, No such heading", "facts.md"]


@pytest.mark.parametrize("page", [p for p in PAGES if "`test_" in p.read_text(encoding="utf-8")], ids=lambda p: p.name)
def test_pages_name_tests_that_exist(page):
    tests = "\n".join(path.read_text(encoding="utf-8") for path in PYTHON)
    named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    assert {name for name in named if f"def {name}(" not in tests} == set()


def messages(tree: ast.AST) -> list[str]:
    """Return the strings of a file that a user may see: all but docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and ast.get_docstring(n, False)}
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [n.value for n in strings if id(n) not in docs]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_messages_send_nobody_to_what_is_not_shipped(path):
    left_out = [line.rstrip("/") for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").split()]
    shown = messages(ast.parse(path.read_text(encoding="utf-8")))
    assert [text for text in shown for name in left_out if f"{name}/" in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_name_files_that_exist(page):
    named = set(re.findall(r"`((?:[a-z_]+/)+(?:[\w.]+\.py)?|[a-z_]+\.py)`", page.read_text(encoding="utf-8")))
    places = (page.parent, ENGINE, ROOT)
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


def test_page_of_the_house_says_who_may_import_whom():
    page = (ENGINE / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \| .* \| (.*)\|$", page, re.MULTILINE)
    said = {room: set(re.findall(r"`(\w+)`", doors)) for room, doors in rows}
    everybody = {"errors", "files"}
    assert said == {room: doors - everybody for room, doors in ALLOWED.items() if (ENGINE / room).is_dir()}
