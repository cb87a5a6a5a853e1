"""Times our nodes in core beside the same stages of ``generate``, in turn: the table of nodes/README.md.

COMFYUI_PATH=folder python tests/comfyui/measure_stages.py [rounds]

Preset balanced, the demo's clip of 65 frames, layers folded on both sides. A whole first round is not counted.
"""

import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[3])]

from comfyui.conftest import DEMO, Core  # noqa: E402

PROMPT, PRESET, SEED, PASSES = "a large red circle moves up on a white background", "balanced", 7, 2


def stages_of_nodes(core):
    """Return a function per stage that runs its node, and gives what the next one takes."""
    demo = core.load_demo()
    model, gaps = (
        core.run("FusionFramesLoadModel", model_name=DEMO[name], layers="folded")[0]
        for name in ("model", "interpolation")
    )
    prompts = core.run("FusionFramesTextEncode", clip=demo.clip, prompt=PROMPT, negative_prompt="")
    latent = core.run("FusionFramesEmptyLatent", preset="64 x 64, demo", keyframes=5)[0]
    shared = {"seed": SEED, "preset": PRESET}
    return (
        lambda _: core.run(
            "FusionFramesKeyframeSampler", model=model, positive=prompts[0], negative=prompts[1], latent=latent,
            guidance_scale=0.2, **shared,
        )[0],
        lambda keyframes: core.run(
            "FusionFramesInterpolate", model=gaps, latent=keyframes, guidance_scale=0.25, passes=PASSES, **shared
        )[0],
        lambda video: core.run("FusionFramesMoVQDecode", vae=demo.vae, latent=video)[0],
    )  # fmt: skip


def stages_of_engine(core):
    """Return a function per stage that runs it as ``generate`` does."""
    pipeline = core.module("ff_kernels.demo.model").demo_pipeline()
    settings = pipeline.resolve(core.module("ff_kernels.pipeline.settings").Settings(preset=PRESET, seed=SEED))
    text = pipeline.encode_text([PROMPT])
    return (
        lambda _: pipeline.sample_keyframes(text, settings),
        lambda keyframes: pipeline.interpolate(keyframes, settings, passes=PASSES),
        lambda video: pipeline.decode(video[0], settings),
    )


def run(stages):
    """Return the seconds of every stage, and the frames."""
    seconds, value = [], None
    for stage in stages:
        start = time.perf_counter()
        value = stage(value)
        seconds.append(time.perf_counter() - start)
    return seconds, value


def main(rounds):
    """Run both in turn, so that what else the machine does falls on both."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        core = Core(Path(folder) / "core")
        sides = stages_of_nodes(core), stages_of_engine(core)
        frames = [run(side)[1] for side in sides]
        print(f"largest difference of frames: {(frames[0] - frames[1]).abs().max():.1e}")
        times = [[run(side)[0] for side in sides] for _ in range(rounds)]
    print("| stage | node, s | generate, s | ratio (least, most) |")
    print("|---|---|---|---|")
    for i, name in enumerate(("keyframes", "interpolation", "decoding")):
        node, engine = ([both[side][i] for both in times] for side in (0, 1))
        ratios = sorted(a / b for a, b in zip(node, engine, strict=True))
        print(
            f"| {name} | {statistics.median(node):.3f} | {statistics.median(engine):.3f} | "
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}, {ratios[-1]:.3f}) |"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
