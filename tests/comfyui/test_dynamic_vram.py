"""The paging patcher of NVIDIA installations gives what the plain one gives."""

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("dynamic_vram.py")
ROOT = Path(__file__).parents[2]


def test_paging_patcher_gives_the_same_frames(core, demo, tmp_path):
    result = tmp_path / "result.pt"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(ROOT), str(tmp_path / "base"), str(result)],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    paged = torch.load(result, weights_only=True)
    assert paged["dynamic"] == [True] * 7
    assert paged["unpaged"] == []
    positive, negative = core.run("FusionFramesTextEncode", clip=demo.clip, prompt="a large red circle")
    latent = core.run("FusionFramesEmptyLatent", width=64, height=64, keyframes=5, preset="64 x 64, demo")[0]
    keyframes = core.run(
        "FusionFramesKeyframeSampler", model=demo.model, positive=positive, negative=negative, latent=latent, seed=7,
        steps=4, guidance_scale=2.0,
    )[0]  # fmt: skip
    video, _ = core.run(
        "FusionFramesInterpolate", model=demo.interpolation, latent=keyframes, seed=7, steps=3, guidance_scale=0.25,
        passes=1, fps=2.0,
    )  # fmt: skip
    frames = core.run("FusionFramesMoVQDecode", vae=demo.vae, latent=video)[0]
    # The plain patcher keeps weights in float32, the paging one casts the file's half precision when it computes.
    assert (paged["frames"] - frames).pow(2).mean().sqrt() < 0.02
    assert (paged["folded"] - frames).pow(2).mean().sqrt() < 0.02
    assert 0 < (paged["narrow"] - paged["frames"]).abs().max() < 0.02
    other = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]().sample(
        demo.model, 1, 3, 3.0, "euler", "normal", positive, negative, latent, 1.0
    )[0]
    assert (paged["ksampler"] - other["samples"]).pow(2).mean().sqrt() < 0.02
