"""Folded layers in core: the frames of the command line, the released weights when saved, and no LoRA on them."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from support.graphs import ksampler, patched

SEED, STEPS, KEYFRAMES = 7, 3, 3
PROMPT = "a large red circle moves up"
MODELS = ("fusionframes_demo_keyframes.safetensors", "fusionframes_demo_interpolation.safetensors")
VAE = "fusionframes_demo_movq.safetensors"
PACK = {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {"a": 1}}}
# What a node that changes or reads weights by their names does.
BY_NAME = {
    "LoRA": lambda model, key: model.clone().add_patches({key: (torch.ones(1),)}, 1.0),
    "hook LoRA": lambda model, key: model.clone().add_hook_patches(SimpleNamespace(hook_ref=1), {key: None}),
    "bypass LoRA": lambda model, key: model.clone().set_injections("bypass_lora", []),
    "merging": lambda model, key: model.get_key_patches("diffusion_model."),
    "compute dtype": lambda model, key: model.clone().set_model_compute_dtype(torch.bfloat16),
}


@pytest.fixture(scope="module")
def folded(core):
    """The keyframe and the interpolation U-Net with folded layers."""
    with torch.inference_mode():
        loaded = [core.run("FusionFramesLoadModel", model_name=name, layers="folded")[0] for name in MODELS]
    return SimpleNamespace(model=loaded[0], interpolation=loaded[1])


@pytest.fixture(scope="module")
def small(core):
    return core.run("FusionFramesEmptyLatent", keyframes=KEYFRAMES, preset="64 x 64, demo")[0]


def tensors_of(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)


def clip(core, models, vae, prompts, latent):
    shared = {"seed": SEED, "steps": STEPS}
    keyframes = core.run(
        "FusionFramesKeyframeSampler", model=models.model, positive=prompts[0], negative=prompts[1], latent=latent,
        guidance_scale=2.0, **shared,
    )[0]  # fmt: skip
    video = core.run(
        "FusionFramesInterpolate", model=models.interpolation, latent=keyframes, guidance_scale=0.25, passes=1, **shared
    )[0]
    return video["samples"], core.run("FusionFramesMoVQDecode", vae=vae, latent=video)[0]


def test_frames_are_the_command_line_s_bit_for_bit(core, demo, folded, prompts, small):
    pipeline = core.module("ff_kernels.demo.model").demo_pipeline()
    settings = core.module("ff_kernels.pipeline.settings").Settings(
        fps="medium", steps=STEPS, keyframes=KEYFRAMES, guidance_scale=2.0, interpolation_guidance=0.25, seed=SEED
    )
    clip_of_engine = pipeline.generate(PROMPT, settings)
    latents, frames = clip(core, folded, demo.vae, prompts, small)
    assert torch.equal(latents[0].transpose(0, 1), clip_of_engine.latents)
    assert torch.equal(frames, clip_of_engine.frames)


def test_frames_are_those_of_the_released_layers_up_to_rounding(core, demo, folded, prompts, small):
    latents, _ = clip(core, folded, demo.vae, prompts, small)
    as_released, _ = clip(core, demo, demo.vae, prompts, small)
    assert not torch.equal(latents, as_released)
    assert (latents - as_released).abs().max() < 1e-3
    again = ksampler(core, folded.model, prompts, small)
    assert (again - ksampler(core, demo.model, prompts, small)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("file", "name", "args"),
    [("nodes_pag", "PerturbedAttentionGuidance", (3.0,)), ("nodes_hypertile", "HyperTile", (1, 2, 1, False))],
)
def test_patches_of_attention_act_as_on_released_layers(core, demo, folded, prompts, small, file, name, args):
    results = [ksampler(core, patched(core, file, name, m, *args), prompts, small) for m in (folded.model, demo.model)]
    assert (results[0] - results[1]).abs().max() < 1e-3
    assert (results[0] - ksampler(core, folded.model, prompts, small)).abs().max() > 1e-3


@pytest.mark.parametrize("way", BY_NAME)
def test_what_goes_by_names_of_weights_is_refused_in_a_sentence(core, folded, way):
    errors = core.module("ff_kernels.errors")
    key = next(name for name in folded.model.model.state_dict() if name.startswith("diffusion_model."))
    with pytest.raises(errors.InputError, match=r'got folded ones: choose "as released" in FusionFrames Load Model$'):
        BY_NAME[way](folded.model, key)


def test_lora_that_came_by_another_way_is_refused_when_it_runs(core, folded, prompts, small):
    model = folded.model.clone()
    model.patches = {"diffusion_model.in_layer.weight": [(1.0, (torch.ones(1),), 1.0, None, None)]}
    with pytest.raises(core.module("ff_kernels.errors").InputError, match="got folded ones"):
        ksampler(core, model, prompts, small)


def test_names_are_the_release_s_so_that_a_lora_finds_them(demo, folded):
    for ours, theirs in ((folded.model, demo.model), (folded.interpolation, demo.interpolation)):
        assert set(ours.model.state_dict()) == set(theirs.model.state_dict())


def test_saved_files_hold_the_released_weights_bit_for_bit(core, demo, folded):
    nodes, output = importlib.import_module("comfy_extras.nodes_model_merging"), core.base / "output"
    with torch.inference_mode():
        nodes.ModelSave().save(folded.model, "folded_model", **PACK)
        nodes.VAESave().save(demo.vae, "folded_vae", **PACK)
    file_path = core.module("nodes._compat").file_path
    pairs = [("diffusion_models", MODELS[0], "folded_model"), ("vae", VAE, "folded_vae")]
    for folder, name, saved in pairs:
        released = tensors_of(file_path(folder, name))
        ours = tensors_of(output / f"{saved}_00001_.safetensors")
        ours = {key.removeprefix("model.diffusion_model."): value for key, value in ours.items()}
        named = {key for key in released if key in ours}
        assert len(named) > 50
        assert not [key for key in released if key not in ours and not key.startswith("projection")]
        assert all(released[key].dtype == ours[key].dtype and torch.equal(released[key], ours[key]) for key in named)


def test_network_is_loaded_whole_or_not_at_all(core, folded, prompts, small):
    management = importlib.import_module("comfy.model_management")
    before = ksampler(core, folded.model, prompts, small)
    assert folded.model.partially_unload("cpu", 1) == 0
    assert folded.model.loaded_size() == folded.model.model_size()
    management.unload_all_models()
    assert torch.equal(ksampler(core, folded.model, prompts, small), before)


def test_other_layers_are_refused(core):
    with pytest.raises(core.module("ff_kernels.errors").InputError, match="layers expected one of as released, folded"):
        core.run("FusionFramesLoadModel", model_name=MODELS[0], layers="strict")
