"""The nodes as their source says they are, read without ComfyUI and compared with what core recorded of them."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

NODES = Path(__file__).parents[1] / "nodes"
PAGES = NODES / "web" / "docs"
SOURCES = sorted(NODES.glob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
# Keywords of widgets that a recorded definition repeats as they are.
WIDGET_KEYWORDS = {"default", "min", "max", "step"}
# Classes of core's node API whose type is not their name in capitals.
TYPES = {"ClipVision": "CLIP_VISION"}


def _helpers() -> dict[str, ast.expr]:
    """Map functions of the node files to what they return, if that is one expression."""
    found = {}
    for node in (node for tree in TREES.values() for node in tree.body):
        if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return):
            found[node.name] = node.body[-1].value
    return found


HELPERS = _helpers()
CLASSES = [node for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)]
SCHEMAS = {
    cls.name: call
    for cls in CLASSES
    for call in ast.walk(cls)
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "io.Schema"
}


@dataclass(frozen=True)
class Socket:
    """``io.<type>.Input`` or ``Output``, as written."""

    type: str
    arguments: tuple[ast.expr, ...]
    keywords: dict[str, ast.expr]

    @property
    def name(self) -> str:
        return ast.literal_eval(self.arguments[0] if self.arguments else self.keywords["display_name"])

    @property
    def is_optional(self) -> bool:
        return "optional" in self.keywords and ast.literal_eval(self.keywords["optional"])


def sockets(value: ast.expr) -> list[Socket]:
    """List what an expression in ``inputs`` or ``outputs`` stands for; helpers are read, never called."""
    if isinstance(value, ast.List):
        return [socket for item in value.elts for socket in sockets(item)]
    if isinstance(value, ast.Starred):
        return sockets(value.value)
    assert isinstance(value, ast.Call), f"cannot read {ast.unparse(value)}"
    if isinstance(value.func, ast.Name):
        return sockets(HELPERS[value.func.id])
    _, kind, _ = ast.unparse(value.func).split(".")
    return [Socket(TYPES.get(kind, kind.upper()), tuple(value.args), {key.arg: key.value for key in value.keywords})]


def part(class_name: str, keyword: str) -> ast.expr:
    return next(key.value for key in SCHEMAS[class_name].keywords if key.arg == keyword)


def text(class_name: str, keyword: str) -> str:
    return ast.literal_eval(part(class_name, keyword))


def literals(socket: Socket) -> dict[str, object]:
    """Return those keywords of a widget that are written as numbers or words."""
    plain = {key: value for key, value in socket.keywords.items() if key in WIDGET_KEYWORDS}
    return {key: ast.literal_eval(value) for key, value in plain.items() if isinstance(value, ast.Constant)}


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads((golden / "object_info.json").read_text(encoding="utf-8"))


each_node = pytest.mark.parametrize("cls", sorted(SCHEMAS))


def test_recorded_nodes_are_those_of_the_source(recorded):
    ids = [text(cls, "node_id") for cls in SCHEMAS]
    assert sorted(ids) == sorted(name for name in recorded if name.startswith("FusionFrames"))
    listed = next(node.value for node in TREES[NODES / "__init__.py"].body if isinstance(node, ast.AnnAssign))
    assert sorted(ast.unparse(item) for item in listed.elts) == sorted(SCHEMAS)


# A Manager that scans sources finds only nodes that name the base class literally.
def test_nodes_name_their_base_class_directly():
    described = {cls.name for cls in CLASSES for node in cls.body if getattr(node, "name", "") == "define_schema"}
    direct = {cls.name for cls in CLASSES if "io.ComfyNode" in map(ast.unparse, cls.bases)}
    assert described == direct == set(SCHEMAS)


@each_node
def test_name_and_category_are_the_recorded_ones(cls, recorded):
    node = recorded[text(cls, "node_id")]
    assert (text(cls, "display_name"), text(cls, "category")) == (node["display_name"], node["category"])


@each_node
@pytest.mark.parametrize("kind", ["required", "optional"])
def test_inputs_are_the_recorded_ones(cls, kind, recorded):
    written = {s.name: s for s in sockets(part(cls, "inputs")) if s.is_optional is (kind == "optional")}
    node = recorded[text(cls, "node_id")]
    assert list(written) == node["input_order"].get(kind, [])
    for name, socket in written.items():
        type_name, *options = node["input"][kind][name]
        assert socket.type == type_name
        assert literals(socket).items() <= dict(*options).items()


@each_node
def test_outputs_are_the_recorded_ones(cls, recorded):
    outputs = sockets(part(cls, "outputs"))
    node = recorded[text(cls, "node_id")]
    assert [(socket.type, socket.name) for socket in outputs] == list(
        zip(node["output"], node["output_name"], strict=True)
    )


@each_node
def test_inputs_have_tooltips(cls):
    inputs = sockets(part(cls, "inputs"))
    without = [socket for socket in inputs if "tooltip" not in socket.keywords]
    assert all(socket.type == "CONDITIONING" and len(socket.keywords) == 0 for socket in without)


@each_node
def test_node_has_a_help_page(cls):
    assert (PAGES / f"{text(cls, 'node_id')}.md").read_text(encoding="utf-8").strip()


def test_help_pages_belong_to_nodes():
    assert {page.stem for page in PAGES.glob("*.md")} <= {text(cls, "node_id") for cls in SCHEMAS}


@pytest.mark.parametrize("path", sorted(NODES.rglob("*.py")), ids=lambda path: str(path.relative_to(NODES)))
def test_sources_are_ascii(path):
    assert path.read_bytes().isascii()
