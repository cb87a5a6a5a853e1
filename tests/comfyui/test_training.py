"""Core's training nodes on our MODEL, and our trainer's files in core's loader."""

import importlib
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fusionframes.ff_kernels.checkpoints.conversion import convert
from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.lora import write_lora
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo import WEIGHTS, ninth, recipe
from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet
from fusionframes.ff_kernels.training.lora import lora_layers

STEPS = 6


@pytest.fixture(scope="module")
def trainer(core):
    try:
        return core.extra("nodes_train", "TrainLoraNode")
    except (ImportError, AttributeError):
        pytest.skip("this core has no training nodes")


@pytest.fixture(scope="module")
def lesson(core, demo):
    """A clip of the ninth motion as core's data set nodes hand it on: a latent and its conditioning, as lists."""
    scene = ninth.zigzag_scenes(held_out=False)[0]
    frames = ninth.render_zigzag(scene, np.random.default_rng(0)).permute(0, 2, 3, 1)
    latent = {"samples": demo.vae.encode(frames)}
    return [latent], list(core.nodes.CLIPTextEncode().encode(demo.clip, scene.caption()))


def train(trainer, demo, lesson, **changes):
    options = {
        "batch_size": 1, "steps": STEPS, "grad_accumulation_steps": 1, "learning_rate": 1e-3, "rank": 2,
        "optimizer": "AdamW", "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32",
        "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": False, "checkpoint_depth": 1,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
    }  # fmt: skip
    wanted = set(trainer.execute.__func__.__code__.co_varnames)
    given = {name: [value] for name, value in (options | changes).items() if name in wanted}
    latents, positive = lesson
    with torch.enable_grad():
        return trainer.execute(model=[demo.model], latents=latents, positive=positive, **given).args


def need_core_that_trains():
    version = importlib.import_module("comfyui_version").__version__
    if tuple(map(int, version.split(".")[:2])) < (0, 30):
        pytest.skip(f"core {version} hands its training weights made in inference mode, which have no gradients")


def test_core_trains_our_model_and_its_loader_finds_every_key(core, demo, trainer, lesson, caplog):
    need_core_that_trains()
    lora, losses, _ = train(trainer, demo, lesson)
    assert len(losses["loss"]) == STEPS
    assert torch.tensor(losses["loss"]).isfinite().all()
    moved = [value for name, value in lora.items() if name.endswith("lora_up.weight") and value.abs().max() > 0]
    assert len(moved) > 100
    with caplog.at_level(logging.WARNING):
        importlib.import_module("comfy.sd").load_lora_for_models(demo.model, None, lora, 1.0, 0.0)
    assert "not loaded" not in caplog.text.lower()


def test_gradient_of_the_estimate_is_that_of_the_noise_at_every_level(core):
    weigh = core.module("nodes.adapters.training").weigh_for_training
    sigma = torch.tensor([0.05, 1.0, 20.0, 900.0])
    with torch.enable_grad():
        noise = torch.full((4, 4, 2, 3, 3), 0.3, requires_grad=True)
        denoised = 1.0 - sigma.reshape(-1, 1, 1, 1, 1) * noise
        weighed = weigh(denoised, sigma)
        assert torch.allclose(weighed, denoised)
        # A target 0.1 of noise away; core's loss, summed.
        (weighed - (1.0 - sigma.reshape(-1, 1, 1, 1, 1) * 0.2)).square().sum().backward()
    expected = 2 * 0.1 * (1 + sigma.square()).clamp(max=10)
    assert torch.allclose(noise.grad.amax(dim=(1, 2, 3, 4)), expected, rtol=1e-3)


def test_bypass_mode_is_refused_in_one_sentence(demo, trainer, lesson):
    with pytest.raises(Exception, match=r"got one in bypass mode, which cannot run beside .*: switch bypass off"):
        train(trainer, demo, lesson, bypass_mode=True)


def test_model_draws_as_before_after_a_lora_in_bypass_mode_was_refused(core, demo, latent):
    name, _ = write_random_lora(core, "bypassed.safetensors")
    loader = importlib.import_module("comfy_extras.nodes_lora_debug").LoraLoaderBypassModelOnly()
    (bypassed,) = loader.load_lora_model_only(demo.model, name, 1.0)
    text = core.nodes.CLIPTextEncode().encode(demo.clip, "a small blue square moves left on a white background")[0]
    before = draw(core, demo.model, text, latent)
    with pytest.raises(Exception, match="switch bypass off"):
        draw(core, bypassed, text, latent)
    assert torch.equal(draw(core, demo.model, text, latent), before)


@pytest.mark.parametrize("bypass_mode", [False, True])
@pytest.mark.parametrize("layers", ["as released", "folded"])
def test_folded_layers_are_refused_in_one_sentence(core, trainer, lesson, layers, bypass_mode):
    need_core_that_trains()
    name, words = "fusionframes_demo_keyframes.safetensors", 'folded ones: choose "as released"'
    if layers == "as released":
        target = core.base / "models" / "diffusion_models" / "folded_for_training.safetensors"
        target.parent.mkdir(exist_ok=True)
        convert(WEIGHTS / "diffusion_models" / name, target, folds=True)
        core.folder_paths.filename_list_cache.clear()
        name, words = target.name, "those of a folded file, which cannot be turned back: load the file"
    with torch.inference_mode():
        (model,) = core.run("FusionFramesLoadModel", model_name=name, layers=layers)
    with pytest.raises(core.module("ff_kernels.errors").InputError, match=f"for a LoRA, training, .* got {words}"):
        train(trainer, SimpleNamespace(model=model), lesson, bypass_mode=bypass_mode)


def test_file_of_our_trainer_loads_in_core_with_every_layer(core, demo, caplog):
    name, count = write_random_lora(core, "motion.safetensors")
    with caplog.at_level(logging.WARNING):
        (patched,) = core.nodes.LoraLoaderModelOnly().load_lora_model_only(demo.model, name, 1.0)
    assert "not loaded" not in caplog.text.lower()
    assert len(patched.patches) == count


def lora_folder(core):
    folder = Path(core.folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    core.folder_paths.filename_list_cache.clear()
    return folder


def draw(core, model, text, latent):
    return core.nodes.KSampler().sample(model, 1, 3, 1.0, "ddpm", "normal", text, text, latent, 1.0)[0]["samples"]


def write_random_lora(core, name):
    layers = lora_layers(KeyframeUNet(recipe.KEYFRAMES, device="meta"), "all")
    factors = {
        key: (torch.randn(len(module.weight), 2), torch.randn(2, module.weight[0].numel()))
        for key, module in layers.items()
    }
    write_lora(lora_folder(core) / name, factors, 0.5, Kind("keyframe", "1.0", recipe.KEYFRAMES), {})
    return name, len(factors)


def test_ksampler_draws_with_a_trained_lora_what_it_draws_with_merged_weights(core, demo, latent, tmp_path):
    ninth.write_clips(tmp_path / "clips", 3, is_new=True)
    lora = lora_folder(core) / "zigzag.safetensors"
    options = ("--source-fps", "2", "--rank", "2", "--steps", "3", "--accumulate", "1", "--learning-rate", "0.03")
    assert main(["train", str(tmp_path / "clips"), "-o", str(lora), *options]) == 0
    merged = core.base / "models" / "diffusion_models" / "zigzag_merged.safetensors"
    merged.parent.mkdir(exist_ok=True)
    base = WEIGHTS / "diffusion_models" / "fusionframes_demo_keyframes.safetensors"
    assert main(["convert", str(base), str(merged), "--merge", str(lora)]) == 0
    core.folder_paths.filename_list_cache.clear()
    loader = core.nodes.LoraLoaderModelOnly()
    models = {
        "base": demo.model,
        "off": loader.load_lora_model_only(demo.model, lora.name, 0.0)[0],
        "on": loader.load_lora_model_only(demo.model, lora.name, 1.0)[0],
        "merged": core.run("FusionFramesLoadModel", model_name=merged.name)[0],
    }
    text = core.nodes.CLIPTextEncode().encode(demo.clip, "a large red circle zigzags on a black background")[0]
    drawn = {name: draw(core, model, text, latent) for name, model in models.items()}
    assert torch.equal(drawn["off"], drawn["base"])
    moved = (drawn["on"] - drawn["base"]).std()
    assert moved > 0.02
    # Merged weights are stored in float16.
    assert (drawn["on"] - drawn["merged"]).std() < 0.05 * moved
