"""Grades core's EasyCache and LazyCache on the demo beside fewer steps: the table of ff_kernels/bench/QUALITY.md.

COMFYUI_PATH=folder python tests/comfyui/measure_caches.py [captions]
"""

import math
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[3])]

from comfyui.conftest import Core  # noqa: E402
from support.graphs import patched  # noqa: E402

from fusionframes.ff_kernels.bench.quality import spread_px  # noqa: E402
from fusionframes.ff_kernels.demo.evaluate import held_out_scenes  # noqa: E402
from fusionframes.ff_kernels.demo.world.measure import compare_clip  # noqa: E402
from fusionframes.ff_kernels.metrics.fidelity import psnr  # noqa: E402
from fusionframes.ff_kernels.stages.releases import DEMO_GUIDANCE_SCALE  # noqa: E402

# Core's own defaults: threshold, first and last part of the run that may be skipped; silent.
CACHES = {"": None, "EasyCache": (0.2, 0.15, 0.95, False), "LazyCache": (0.2, 0.15, 0.95, False)}
STEPS = 20


def ksampler(core, model, prompts, latent, seed):
    """Core's KSampler with a solver of second order."""
    sample = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]().sample
    return sample(model, seed, STEPS, 1 + DEMO_GUIDANCE_SCALE, "dpmpp_2m", "karras", *prompts, latent, 1.0)[0]


def ours(core, model, prompts, latent, seed):
    """Our own sampler with half of those steps."""
    return core.run(
        "FusionFramesKeyframeSampler", model=model, positive=prompts[0], negative=prompts[1], latent=latent, seed=seed,
        guidance_scale=DEMO_GUIDANCE_SCALE, steps=STEPS // 2, solver="dpmpp_2m",
    )[0]  # fmt: skip


SAMPLERS = {
    f"KSampler, {STEPS} steps of dpmpp_2m, karras": ksampler,
    f"Keyframe Sampler, {STEPS // 2} steps of dpmpp_2m": ours,
}


def main(captions):
    """Run every sampler with every cache over the same captions and seeds."""
    warnings.simplefilter("ignore")
    scenes = held_out_scenes(captions)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        core = Core(Path(folder) / "core")
        demo = core.load_demo()
        latent = core.run("FusionFramesEmptyLatent", preset="64 x 64, demo", keyframes=5)[0]
        texts = [
            core.run("FusionFramesTextEncode", clip=demo.clip, prompt=scene.caption(), negative_prompt="")
            for scene in scenes
        ]
        print("| | network calls | all five right | shape IoU | colour RMSE | spread, px | dB to the run without |")
        print("|---|---|---|---|---|---|---|")
        for title, sample in SAMPLERS.items():
            plain = None
            for cache, values in CACHES.items():
                model = demo.model if values is None else patched(
                    core, "nodes_easycache", f"{cache}Node", demo.model, *values
                )  # fmt: skip
                calls = []
                hook = model.model.diffusion_model.in_layer.register_forward_hook(
                    lambda *_, calls=calls: calls.append(1)
                )
                clips = []
                for seed, prompts in enumerate(texts):
                    # Without the preset's mark, so that all are decoded in float32.
                    samples = {"samples": sample(core, model, prompts, latent, seed)["samples"]}
                    frames = core.run("FusionFramesMoVQDecode", vae=demo.vae, latent=samples)[0]
                    clips.append(frames.movedim(-1, 1).float())
                hook.remove()
                plain = clips if plain is None else plain
                near = "-" if cache == "" else f"{mean_psnr(plain, clips):.1f}"
                print(row(f"{title}{cache and ', ' + cache}", len(calls) / captions, scenes, clips, near), flush=True)


def mean_psnr(plain, clips):
    """Mean over clips in dB."""
    return statistics.fmean(psnr(a.clamp(0, 1), b.clamp(0, 1)).mean().item() for a, b in zip(plain, clips, strict=True))


def row(title, calls, scenes, clips, near):
    """One line of the table."""
    graded = [compare_clip(clip, scene) for clip, scene in zip(clips, scenes, strict=True)]
    right = sum(clip.right["all"] for clip in graded)
    iou = statistics.fmean(clip.shape_iou for clip in graded)
    colour = math.sqrt(statistics.fmean(clip.color_rmse**2 for clip in graded))
    spread = spread_px(scenes, graded)
    cells = (title, f"{calls:.1f}", f"{right} of {len(clips)}", f"{iou:.3f}", f"{colour:.2f}", f"{spread:.2f}", near)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 32)
