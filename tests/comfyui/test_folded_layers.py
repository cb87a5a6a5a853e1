"""Folded layers in core: the frames of the command line, the released weights when saved, and no LoRA on them."""

import importlib
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

SEED, STEPS, KEYFRAMES, SIZE = 7, 3, 3, 64
PROMPT = "a large red circle moves up"
MODELS = ("fusionframes_demo_keyframes.safetensors", "fusionframes_demo_interpolation.safetensors")
PACK = {"prompt": {}, "extra_pnginfo": {}}
CLIP, HOOKS = "Clip", "Hooks"


@pytest.fixture(scope="module")
def folded(core):
    """The keyframe and the interpolation U-Net with folded layers."""
    loaded = [core.run("FusionFramesLoadModel", model_name=name, layers="folded")[0] for name in MODELS]
    return SimpleNamespace(model=loaded[0], interpolation=loaded[1])


def file_of(core, kind, name):
    with safe_open(core.module("nodes._compat").file_path(kind, name), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)


def sample(core, model, prompts, keyframes=KEYFRAMES):
    latent = core.run(
        "FusionFramesEmptyLatent", width=SIZE, height=SIZE, keyframes=keyframes, preset="64 x 64, demo"
    )[0]
    return core.run(
        "FusionFramesKeyframeSampler", model=model, positive=prompts[0], negative=prompts[1], latent=latent, seed=SEED,
        steps=STEPS, guidance_scale=2.0,
    )[0]  # fmt: skip


def interpolate(core, model, keyframes):
    return core.run(
        "FusionFramesInterpolate", model=model, latent=keyframes, seed=SEED, steps=STEPS, guidance_scale=0.25, passes=1
    )[0]


def test_frames_are_the_command_line_s_bit_for_bit(core, demo, folded, prompts):
    pipelines, demo_model = core.module("ff_kernels.pipeline"), core.module("ff_kernels.demo.model")
    with pipelines.Pipeline(demo_model.find_demo(), parity="fast") as pipeline:
        out = pipeline.generate(PROMPT)
    keyframes = sample(core, folded.model, prompts)
    video = interpolate(core, folded.interpolation, keyframes)
    frames = core.run("FusionFramesMoVQDecode", vae=demo.vae, latent=video)[0]
    assert torch.equal(frames, out)
