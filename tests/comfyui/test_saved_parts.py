"""What core saves of ours, our loaders open, bit for bit; and what they say and need meanwhile."""

import importlib
import json
import logging
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

FOLDERS = ("diffusion_models", "text_encoders", "vae")
PACK = {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {"a": 1}}}
DEMO_KEYFRAMES = "fusionframes_demo_keyframes.safetensors"


@pytest.fixture(scope="module")
def saved(core, demo):
    """Names of files that core's nodes write of the demo, in the model folders."""
    models = core.base / "models"
    for folder in FOLDERS:
        (models / folder).mkdir(exist_ok=True)
    before = core.folder_paths.get_output_directory()
    core.folder_paths.set_output_directory(str(models))
    nodes = importlib.import_module("comfy_extras.nodes_model_merging")
    with torch.inference_mode():
        nodes.CLIPSave().save(demo.clip, "text_encoders/saved_clip", **PACK)
        nodes.VAESave().save(demo.vae, "vae/saved_vae", **PACK)
        nodes.CheckpointSave().save(demo.model, demo.clip, demo.vae, "diffusion_models/saved_all", **PACK)
    core.folder_paths.set_output_directory(before)
    whole = "saved_all_00001_.safetensors"
    for folder in FOLDERS[1:]:
        shutil.copy(models / "diffusion_models" / whole, models / folder)
    core.folder_paths.filename_list_cache.clear()
    return {"clip": "saved_clip_00001_.safetensors", "vae": "saved_vae_00001_.safetensors", "whole": whole}


def load_clip(core, name, projection="none"):
    return core.run("FusionFramesLoadTextEncoder", text_encoder_name=name, projection_name=projection)[0]


def encode(core, clip):
    return core.nodes.NODE_CLASS_MAPPINGS["CLIPTextEncode"]().encode(clip, "a large red circle")[0][0][0]


@pytest.mark.parametrize("file", ["clip", "whole"])
def test_saved_text_encoder_is_the_same_with_its_projection_and_tokenizer(core, demo, saved, file):
    again = load_clip(core, saved[file])
    assert torch.equal(encode(core, again), encode(core, demo.clip))
    ours, theirs = demo.clip.cond_stage_model.state_dict(), again.cond_stage_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("file", ["vae", "whole"])
def test_saved_movq_is_the_same(core, demo, saved, file):
    again = core.run("FusionFramesLoadMoVQ", vae_name=saved[file])[0]
    assert again.movq.config == demo.vae.movq.config
    ours, theirs = demo.vae.movq.state_dict(), again.movq.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_saved_checkpoint_holds_the_u_net(core, demo, saved):
    again = core.run("FusionFramesLoadModel", model_name=saved["whole"])[0]
    ours, theirs = demo.model.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(again.model.null_embedding, demo.model.model.null_embedding)


def test_core_s_metadata_is_in_the_files(core, saved):
    for folder, name in (("text_encoders", saved["clip"]), ("vae", saved["vae"])):
        with safe_open(core.base / "models" / folder / name, "pt") as file:
            assert json.loads(file.metadata()["workflow"]) == {"a": 1}


@pytest.fixture(scope="module")
def copies(core):
    """An encoder in eight bits, and an encoder and a U-Net of one name in two folders."""
    module = core.module("nodes._compat")
    source = module.file_path("text_encoders", "fusionframes_demo_text_encoder.safetensors")
    folder = core.base / "models" / "text_encoders"
    folder.mkdir(exist_ok=True)
    (core.base / "models" / "diffusion_models").mkdir(exist_ok=True)
    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        small = {k: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for k, v in tensors.items()}
        save_file(small, folder / "fp8.safetensors", metadata=file.metadata())
    shutil.copy(source.parent / "spiece.model", folder)
    shutil.copy(source, folder / "one_name.safetensors")
    keyframes = module.file_path("diffusion_models", DEMO_KEYFRAMES)
    shutil.copy(keyframes, core.base / "models" / "diffusion_models" / "one_name.safetensors")
    core.folder_paths.filename_list_cache.clear()


def test_text_encoder_in_eight_bits_stays_so_and_encodes(core, demo, copies):
    clip = load_clip(core, "fp8.safetensors", DEMO_KEYFRAMES)
    model = clip.cond_stage_model
    assert model.shared.weight.dtype == torch.float8_e4m3fn
    assert model.encoder.block[0].layer[0].layer_norm.weight.dtype != torch.float8_e4m3fn
    exact, near = encode(core, demo.clip), encode(core, clip)
    assert near.shape == exact.shape
    assert (near - exact).pow(2).mean().sqrt() < 0.2 * exact.std()


def test_projection_of_a_text_encoder_s_file_name_can_be_chosen(core, demo, copies):
    clip = load_clip(core, "one_name.safetensors", "one_name.safetensors")
    assert torch.equal(encode(core, clip), encode(core, demo.clip))


def test_loading_a_movq_raises_no_false_alarm(core, caplog):
    caplog.set_level(logging.DEBUG)
    core.run("FusionFramesLoadMoVQ", vae_name="fusionframes_demo_movq.safetensors")
    assert not [record for record in caplog.records if "No VAE weights" in record.getMessage()]


# Measured as what a fresh process grows by, released widths, float32, 192 x 192: 1, 4 and 12 frames.
@pytest.mark.parametrize(("frames", "measured"), [(1, 183e6), (4, 616e6), (12, 762e6)])
def test_encoding_tells_core_the_memory_it_takes(core, demo, monkeypatch, frames, measured):
    released = core.module("ff_kernels.models.configs").MOVQ
    monkeypatch.setattr(demo.vae.movq, "config", released)
    told = demo.vae.memory_used_encode((1, 3, frames, 192, 192), torch.float32)
    assert measured / 1.3 < told < measured * 1.3
