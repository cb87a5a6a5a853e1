"""Every workflow of the pack: what its file must carry, and what the real front end makes of it."""

import io
import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from support import stand_in

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))
PACK = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
INTERPOLATE, BYPASSED = "FusionFramesInterpolate", 4
# The front end's own nodes belong to no package.
NOTES = {"Note", "MarkdownNote"}
VERSION = re.compile(r"\d+\.\d+\.\d+|[0-9a-f]{7,40}")
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".gguf")
DEMO = "fusionframes_demo_"
# Model folders that our loaders read.
FOLDERS = {
    "FusionFramesLoadModel": {"diffusion_models"},
    "FusionFramesLoadTextEncoder": {"text_encoders", "diffusion_models"},
    "FusionFramesLoadMoVQ": {"vae"},
}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}
SEEDS = {"seed", "noise_seed"}
# A player that the front end adds once its video is there; no node has such an input.
PLAYER = "video-preview"
MIN_COLOURS = 50
EMPTY = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": []}

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def widget_values(node: dict) -> list:
    values = node.get("widgets_values") or []
    return list(values.values()) if isinstance(values, dict) else values


def what_runs(prompt: dict) -> dict:
    """Reduce a prompt to what core reads of it."""
    return {
        key: (node["class_type"], {name: value for name, value in node["inputs"].items() if name != PLAYER})
        for key, node in prompt.items()
    }


def colours_in_the_middle(picture: bytes) -> int:
    """Count the colours where the graph is; menus and tabs around it are never blank."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    width, height = image.size
    middle = image.crop((width // 5, height // 5, 4 * width // 5, 4 * height // 5))
    return len(middle.getcolors(maxcolors=middle.width * middle.height))


def test_there_are_workflows_each_with_a_twin():
    assert WORKFLOWS
    assert {path.name for path in WORKFLOWS} == {path.name for path in (FOLDER / "api").glob("*.json")}


@each_workflow
def test_nodes_name_their_package_and_its_version(path):
    faults = []
    for node in stand_in.all_nodes(read(path)):
        properties = node.get("properties", {})
        expected = PACK if node["type"].startswith("FusionFrames") else "comfy-core"
        named = properties.get("cnr_id") == expected and VERSION.fullmatch(str(properties.get("ver")))
        if node["type"] not in NOTES and not named:
            faults.append((node["id"], node["type"], properties.get("cnr_id"), properties.get("ver")))
    assert not faults


@each_workflow
def test_files_that_are_not_ours_say_where_to_get_them(path):
    faults = []
    for node in stand_in.all_nodes(read(path)):
        models = {model["name"]: model for model in node.get("properties", {}).get("models", [])}
        files = [v for v in widget_values(node) if isinstance(v, str) and v.lower().endswith(SUFFIXES)]
        for file in files:
            model = models.get(file, {})
            folders = FOLDERS.get(node["type"], {model.get("directory")}) - {None, ""}
            found = model.get("url", "").startswith("https://") and model.get("directory") in folders
            if not file.startswith(DEMO) and not found:
                faults.append((node["id"], file, model))
    assert not faults


@each_workflow
def test_seeds_are_fixed(path, definitions):
    faults = []
    for node in stand_in.all_nodes(read(path)):
        specs = stand_in.input_specs(definitions.get(node["type"], {"input": {}}))
        seeds = [
            key for key, (_, *rest) in specs.items() if key in SEEDS or (rest and rest[0].get("control_after_generate"))
        ]
        controls = [v for v in widget_values(node) if v in AFTER_GENERATE]
        if controls != ["fixed"] * len(seeds):
            faults.append((node["id"], node["type"], controls))
    assert not faults


@each_workflow
def test_no_node_hangs_over_the_group_it_stands_in(path):
    graph, faults = read(path), []
    for group in graph["groups"]:
        left, top, width, height = group["bounding"]
        for node in graph["nodes"]:
            (x, y), (node_width, node_height) = node["pos"][:2], node["size"][:2]
            stands_in = left <= x <= left + width and top <= y <= top + height
            if stands_in and (x + node_width > left + width or y + node_height > top + height):
                faults.append((group["title"], node["type"]))
    assert not faults


@each_workflow
def test_thumbnail_lies_beside_the_workflow(path):
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.is_file()
    with Image.open(thumbnail) as image:
        assert image.format == "JPEG"


@each_workflow
def test_opens_without_a_complaint(front_end, path):
    assert front_end.open(path.stem, read(path)).problems == []


@each_workflow
def test_front_end_makes_the_api_twin_of_it(front_end, path):
    prompt = front_end.open(path.stem, read(path)).prompt
    assert what_runs(prompt) == what_runs(read(FOLDER / "api" / path.name))


# Where a node is bypassed, the front end falls back to the widget behind the link that it fed.
@pytest.mark.parametrize("path", [path for path in WORKFLOWS if INTERPOLATE in path.read_text()], ids=lambda p: p.stem)
def test_a_bypassed_interpolation_leaves_the_rate_of_the_keyframes(front_end, path):
    workflow = read(path)
    for node in stand_in.all_nodes(workflow):
        if node["type"] == INTERPOLATE:
            node["mode"] = BYPASSED
    prompt = front_end.open(f"{path.stem} bypassed", workflow).prompt
    rates = [node["inputs"]["fps"] for node in prompt.values() if node["class_type"] == "CreateVideo"]
    assert rates
    assert set(rates) == {2}


@each_workflow
def test_picture_of_the_graph_is_not_blank(front_end, path, tmp_path):
    folder = Path(os.environ.get("FUSIONFRAMES_ARTEFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    picture = front_end.open(path.stem, read(path)).picture
    (folder / f"{path.stem}.png").write_bytes(picture)
    assert colours_in_the_middle(picture) > MIN_COLOURS


def test_planted_faults_are_seen(front_end):
    kinds = {1: ("FusionFramesLoadMoVQ", ["not_there.safetensors"]), 2: ("FusionFramesNoSuchNode", [])}
    nodes = [
        {"id": i, "type": kind, "pos": [i * 400, 0], "size": [300, 100], "widgets_values": values, "properties": {}}
        for i, (kind, values) in kinds.items()
    ]
    workflow = {**EMPTY, "nodes": nodes, "floatingLinks": None}
    problems = front_end.open("planted faults", workflow).problems
    planted = {
        'node 1 (FusionFramesLoadMoVQ): vae_name has no option "not_there.safetensors"',
        "node 1 (FusionFramesLoadMoVQ) is marked as faulty",
        "node 2 (FusionFramesNoSuchNode) is not registered",
    }
    assert planted <= set(problems)
    shown = [problem for problem in problems if problem.startswith("shows: ")]
    assert any("schema" in text and "floatingLinks" in text for text in shown)
    assert any("schema" not in text for text in shown)


def test_empty_graph_has_no_problems_and_counts_as_blank(front_end):
    opened = front_end.open("nothing", EMPTY)
    assert opened.problems == []
    assert colours_in_the_middle(opened.picture) <= MIN_COLOURS
