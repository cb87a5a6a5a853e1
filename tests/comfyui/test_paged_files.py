"""Quantised and folded files under core's paging patcher: what it finds in the file again, and that nothing changes."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.graphs import keyframes, ksampler
from support.quantised import FORMATS, Folder, decibels, known_formats, linear_names, quantise, with_markers

from fusionframes.ff_kernels.checkpoints.conversion import convert
from fusionframes.ff_kernels.ops.rounding import Report

SCRIPT = Path(__file__).with_name("paged_files.py")
ROOT = Path(__file__).parents[2]
KEYFRAMES, TEXT = "fusionframes_demo_keyframes.safetensors", "fusionframes_demo_text_encoder.safetensors"
OWN = {"own8": (False, None, True), "folded": (True, torch.float32, False), "folded8": (True, None, True)}
# Core rounds quantised layers of up to 16 KB anew when it pages, as the demo's are; the released networks have none.
LARGE = [f"large_{form}" for form in ("float8_e4m3fn", "mxfp8", "int8_tensorwise")]
# What rounding does to a few latents where weights lie elsewhere, on a processor with AMX (4.7e-5); the rest has 1e-5.
ROUNDED = {"large_float8_e4m3fn": 1e-4}
# Signal to noise of what is paged to what is not, some decibels below what was measured.
NEAR = {"float8_e4m3fn": 50, "mxfp8": 50, "nvfp4": 12, "int8_tensorwise": 45, "own8": 45}
NEAR_TEXT = {"float8_e4m3fn": 50, "mxfp8": 50, "nvfp4": 9, "int8_tensorwise": 32, "own8": 32}


def write_lora(weights, names, path):
    generator, lora = torch.Generator().manual_seed(5), {}
    for name in names:
        rows, columns = weights[f"{name}.weight"].shape
        lora[f"diffusion_model.{name}.lora_up.weight"] = 0.1 * torch.randn(rows, 1, generator=generator)
        lora[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(1, columns, generator=generator)
    torch.save(lora, path)
    return lora


@pytest.fixture(scope="module")
def files(core):
    """The folder of models with files of every kind in it, and the LoRA beside them."""
    nets, texts = Folder(core, "diffusion_models", KEYFRAMES), Folder(core, "text_encoders", TEXT)
    large = [name for name in linear_names(nets.tensors) if nets.tensors[f"{name}.weight"].numel() > 2**14]
    queries = [name for name in linear_names(nets.tensors) if name.endswith(".to_query")]
    for name in [name for name in LARGE if name.removeprefix("large_") in known_formats()]:
        nets.write(f"paged_{name}", with_markers(*quantise(nets.tensors, large, name.removeprefix("large_"))))
    for form in [form for form in FORMATS if form in known_formats()]:
        for folder, name in ((nets, f"paged_{form}"), (texts, f"paged_text_{form}")):
            folder.write(name, with_markers(*quantise(folder.tensors, linear_names(folder.tensors), form)))
    for name, (folds, dtype, rounds) in OWN.items():
        target, rounding = nets.path / f"paged_{name}.safetensors", Report() if rounds else None
        convert(nets.source, target, folds=folds, dtype=dtype, rounding=rounding)
    convert(texts.source, texts.path / "paged_text_own8.safetensors", rounding=Report())
    core.folder_paths.filename_list_cache.clear()
    lora = write_lora(nets.tensors, large[:4] + queries[:4], core.base / "models" / "lora.pt")
    yield core.base / "models", lora
    for path in (core.base / "models").rglob("paged_*"):
        path.unlink()


@pytest.fixture(scope="module")
def paged(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paging")
    result = folder / "result.pt"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(ROOT), str(folder / "base"), str(result), str(files[0])],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(result, weights_only=True)


def told_of(paged, name):
    if f"paged_{name}" not in paged:
        pytest.skip(f"this core has no {name}")
    return paged[f"paged_{name}"]


def load(core, name):
    with torch.inference_mode():
        return core.run("FusionFramesLoadModel", model_name=f"paged_{name}.safetensors")[0]


def widened_of(filed):
    """Core has no layer for convolutions in 8 bit, an old one for nothing in them: what is widened is in no file."""
    least = 2 if "int8_tensorwise" in known_formats() else 1
    return {key for key, value in filed.items() if value.dtype is torch.int8 and value.ndim > least}


@pytest.fixture(scope="module")
def small(core):
    return core.run("FusionFramesEmptyLatent", keyframes=2, preset="64 x 64, demo")[0]


@pytest.mark.parametrize("name", [*FORMATS, *LARGE, "own8"])
def test_pager_finds_all_but_widened_convolutions_in_the_file_again(files, paged, name):
    told = told_of(paged, name)
    assert told["dynamic"]
    assert told["wrong"] == []
    filed = load_file(files[0] / "diffusion_models" / f"paged_{name}.safetensors")
    widened = widened_of(filed)
    assert bool(widened) == (name == "own8")
    assert set(told["unpaged"]) == widened
    stored = {key: value.nbytes for key, value in filed.items() if key in told["bytes"] and key not in widened}
    assert {key: told["bytes"][key] for key in stored} == stored


@pytest.mark.parametrize("name", [*FORMATS, *LARGE, *OWN])
def test_paged_network_samples_like_the_plain_one_also_after_it_gave_all_back(core, paged, small, name):
    told, model = told_of(paged, name), load(core, name)
    assert told["left"] == 0
    assert told["is_restored"]
    assert torch.equal(told["again"], told["sample"])
    for found, wanted in (
        (told["sample"], ksampler(core, model, paged["prompts"], small, 2)),
        (told["keyframes"], keyframes(core, model, paged["prompts"], small, 2)),
    ):
        if name in NEAR:
            assert decibels(found, wanted) > NEAR[name]
        else:
            assert (found - wanted).abs().max() < ROUNDED.get(name, 1e-5)


@pytest.mark.parametrize("name", [*LARGE, "own8"])
def test_lora_on_paged_quantised_layers_acts_as_on_plain_ones(core, files, paged, small, name):
    told, model = told_of(paged, name), load(core, name)
    patched = importlib.import_module("comfy.sd").load_lora_for_models(model, None, files[1], 1.0, 0.0)[0]
    wanted = ksampler(core, patched, paged["prompts"], small, 2)
    assert decibels(told["lora"], wanted) > 25 + decibels(told["lora"], told["sample"])
    assert torch.equal(told["without"], told["sample"])


@pytest.mark.parametrize("name", ["folded", "folded8"])
def test_folded_layers_are_moved_whole_and_counted_whole(core, paged, name):
    told, plain = told_of(paged, name), load(core, name)
    assert told["dynamic"]
    assert told["wrong"] == []
    assert told["loaded"] == told["size"] == plain.model_size()
    own = core.module("nodes.adapters.conditioner").conditioner_of(plain)
    # Beside what is read there are buffers of folded layers and core's table of noise levels.
    assert 0 < plain.model_size() + own.model_size() - sum(told["bytes"].values()) < 2**14


@pytest.mark.parametrize("form", [*FORMATS, "own8"])
def test_paged_text_encoder_is_found_in_its_files_and_encodes_like_the_plain_one(core, files, paged, form):
    told = told_of(paged, f"text_{form}")
    assert told["dynamic"]
    assert told["wrong"] == []
    assert set(told["unpaged"]) == widened_of(load_file(files[0] / "text_encoders" / f"paged_text_{form}.safetensors"))
    names = {"text_encoder_name": f"paged_text_{form}.safetensors", "projection_name": KEYFRAMES}
    clip = core.run("FusionFramesLoadTextEncoder", **names)[0]
    wanted = core.nodes.NODE_CLASS_MAPPINGS["CLIPTextEncode"]().encode(clip, "a large red circle")[0][0][0]
    assert decibels(told["context"], wanted) > NEAR_TEXT[form]
    assert torch.equal(told["again"], told["context"])
