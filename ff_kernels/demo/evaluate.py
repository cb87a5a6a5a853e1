"""Measure the demo model: ``python -m fusionframes.ff_kernels.demo.evaluate`` prints the table of README.md."""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..checkpoints.folder import find_models
from ..media.pictures import write_image
from ..media.sheet import contact_sheet
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import LEVELS, Settings
from . import WEIGHTS
from .batches import HELD_OUT_SCENES, draw_clip
from .model import DEFAULTS
from .world.measure import measure_scene, score
from .world.scenes import ATTRIBUTES, FULL_FRAMES, KEYFRAMES, MEDIUM_FRAMES, Scene, frame_times

# What the shipped weights must reach: shares of held-out captions, PSNR in dB (shared with the tests).
THRESHOLDS = {"color": 0.97, "size": 0.95, "shape": 0.92, "background": 0.92, "motion": 0.85, "all": 0.70,
              "movq_psnr": 35.0, "interpolation_gain": 3.0}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, its value and the least it must be (None: shown for comparison)."""

    name: str
    value: float
    threshold: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value reaches its threshold."""
        return self.threshold is None or self.value >= self.threshold


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Return ``count`` scenes whose combination of attributes was never trained, all motions equally often."""
    order = np.random.default_rng(seed).permutation(len(HELD_OUT_SCENES))
    by_motion = {motion: [] for motion in ATTRIBUTES["motion"]}
    for i in order:
        by_motion[HELD_OUT_SCENES[i].motion].append(HELD_OUT_SCENES[i])
    rounds = max(map(len, by_motion.values()))
    mixed = [scenes[i % len(scenes)] for i in range(rounds) for scenes in by_motion.values()]
    return [mixed[i % len(mixed)] for i in range(count)]


@torch.inference_mode()
def attribute_accuracy(
    pipeline: Pipeline, scenes: Sequence[Scene], settings: Settings, *, batch: int = 16
) -> dict[str, float]:
    """Generate a clip for every scene's canonical caption and read the attributes back from its pixels.

    Args:
        pipeline: the demo model.
        scenes: what to ask for.
        settings: ``fps`` decides whether keyframes or interpolated clips are measured.
        batch: clips per run; clip i has the noise of seed + i whatever the batch.

    Returns:
        Share of right answers per attribute and under "all".
    """
    totals: dict[str, int] = {}
    for scene, frames in sample_clips(pipeline, scenes, settings, batch=batch):
        for name, right in score(scene, measure_scene(frames)).items():
            totals[name] = totals.get(name, 0) + right
    return {name: right / len(scenes) for name, right in totals.items()}


@torch.inference_mode()
def sample_clips(
    pipeline: Pipeline, scenes: Sequence[Scene], settings: Settings, *, batch: int = 16
) -> Iterator[tuple[Scene, Tensor]]:
    """Yield every scene with a clip ``[F, 3, 64, 64]`` in 0..1 made from its canonical caption.

    Arguments as in ``attribute_accuracy``.
    """
    settings = pipeline.resolve(settings)
    passes = LEVELS[settings.fps][0]
    for start in tqdm(range(0, len(scenes), batch), desc="captions", unit="batch"):
        part = scenes[start : start + batch]
        shifted = pipeline.resolve(Settings(**{**vars(settings), "seed": settings.seed + start}))
        text = pipeline.encode_text([scene.caption() for scene in part])
        latents = pipeline.sample_keyframes(text, shifted)
        if passes:
            latents = pipeline.interpolate(latents, shifted, passes=passes, text=text)
        for scene, clip in zip(part, latents, strict=True):
            yield scene, pipeline.decode(clip, shifted).permute(0, 3, 1, 2)


@torch.inference_mode()
def keyframe_sheet(pipeline: Pipeline, scenes: Sequence[Scene], settings: Settings) -> Image.Image:
    """Return the keyframes of one clip per scene as a contact sheet, a clip per row."""
    settings = pipeline.resolve(settings)
    text = pipeline.encode_text([scene.caption() for scene in scenes])
    clips = pipeline.sample_keyframes(text, settings)
    frames = torch.cat([pipeline.decode(clip, settings) for clip in clips])
    return contact_sheet(frames, columns=clips.shape[1])


def true_clips(count: int, frames: int, seed: int = 1) -> list[Tensor]:
    """Return held-out clips ``[frames, 3, 64, 64]`` in 0..1."""
    rng = np.random.default_rng(seed)
    return [(draw_clip(rng, scene, frame_times(frames)) + 1) / 2 for scene in held_out_scenes(count, seed)]


def pooled_psnr(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the PSNR in dB of the squared error pooled over all pairs; one exact pair so does not make it infinite."""
    from kornia.metrics import psnr

    out, expected = (torch.cat([pair[i].flatten() for pair in pairs]) for i in range(2))
    return psnr(out, expected, 1.0).item()


@torch.inference_mode()
def reconstruction_psnr(pipeline: Pipeline, decoder: str, clips: Sequence[Tensor]) -> float:
    """Return the mean PSNR in dB of clips through the encoder and ``decoder`` (movq or video_movq)."""
    settings = pipeline.resolve(Settings(fps="low"))
    values = []
    for clip in clips:
        latents = pipeline.network("movq").network.encode(clip * 2 - 1)
        frames = pipeline.decode(latents, settings, decoder=decoder).permute(0, 3, 1, 2)
        values.append(pooled_psnr([(frames, clip)]))
    return float(np.mean(values))


@torch.inference_mode()
def interpolation_psnr(
    pipeline: Pipeline, clips: Sequence[Tensor], passes: int, settings: Settings | None = None
) -> tuple[float, float]:
    """Interpolate true keyframes and compare the new frames with the truth, beside linear blending of pixels.

    Args:
        pipeline: the demo model.
        clips: ``[4 ** passes * (T - 1) + 1, 3, 64, 64]`` true frames in 0..1.
        passes: interpolation passes.
        settings: sampling steps and the like; default the demo's.

    Returns:
        PSNR in dB of the model and of blending the true keyframes' pixels, both over new frames only.
    """
    ours, blends = [], []
    for clip, frames, linear in interpolated_clips(pipeline, clips, passes, settings):
        new = torch.arange(len(clip)) % 4**passes != 0
        ours.append((frames[new], clip[new]))
        blends.append((linear[new], clip[new]))
    return pooled_psnr(ours), pooled_psnr(blends)


@torch.inference_mode()
def interpolated_clips(
    pipeline: Pipeline, clips: Sequence[Tensor], passes: int, settings: Settings | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield every clip with what interpolation, and linear blending of pixels, make of its true keyframes.

    Arguments as in ``interpolation_psnr``; all three are ``[F, 3, 64, 64]`` in 0..1.
    """
    settings = pipeline.resolve(settings or Settings(fps="low"))
    spacing = 4**passes
    keyframes = torch.cat([pipeline.network("movq").network.encode(clip[::spacing] * 2 - 1)[None] for clip in clips])
    latents = pipeline.interpolate(keyframes, settings, passes=passes)
    for clip, video in zip(clips, latents, strict=True):
        yield clip, pipeline.decode(video, settings).permute(0, 3, 1, 2), blend(clip[::spacing], spacing)


def blend(keyframes: Tensor, spacing: int) -> Tensor:
    """Return keyframes ``[T, ...]`` with ``spacing - 1`` linear blends between neighbours."""
    share = (torch.arange(spacing) / spacing).reshape(-1, *[1] * (keyframes.ndim - 1))
    parts = [torch.lerp(a[None], b[None], share) for a, b in itertools.pairwise(keyframes)]
    return torch.cat([*parts, keyframes[-1:]])


def evaluate(pipeline: Pipeline, captions: int, clips: int, settings: Settings) -> list[Row]:
    """Measure everything; the rows of README's table."""
    accuracy = attribute_accuracy(pipeline, held_out_scenes(captions), settings)
    rows = [Row(name, accuracy[name], THRESHOLDS[name]) for name in (*ATTRIBUTES, "all")]
    keyframes = true_clips(clips, KEYFRAMES)
    rows.append(Row("movq_psnr", reconstruction_psnr(pipeline, "movq", keyframes), THRESHOLDS["movq_psnr"]))
    neighbours = [clip[:KEYFRAMES] for clip in true_clips(clips, FULL_FRAMES)]
    for decoder in ("movq", "video_movq"):
        rows.append(Row(f"{decoder}_psnr_30fps", reconstruction_psnr(pipeline, decoder, neighbours)))
    for passes, frames in ((1, MEDIUM_FRAMES), (2, FULL_FRAMES)):
        ours, linear = interpolation_psnr(pipeline, true_clips(clips, frames), passes)
        rows.append(Row(f"interpolation_psnr_{frames}_frames", ours))
        rows.append(Row(f"linear_blend_psnr_{frames}_frames", linear))
        rows.append(Row(f"interpolation_gain_{frames}_frames", ours - linear, THRESHOLDS["interpolation_gain"]))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; status 1 if a threshold is missed."""
    parser = argparse.ArgumentParser(prog="fusionframes.ff_kernels.demo.evaluate", description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of demo weights (default: the shipped)")
    parser.add_argument("--captions", type=int, default=64, help="held-out captions (default 64)")
    parser.add_argument("--clips", type=int, default=16, help="true clips per PSNR row (default 16)")
    parser.add_argument("--fps", choices=LEVELS, default="low", help="measure keyframes (low) or interpolated clips")
    parser.add_argument("--guidance", type=float, help="text guidance w (default: the demo's)")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first caption's clip")
    parser.add_argument("--sheet", type=Path, help="only write the keyframes of six captions as a picture")
    options = parser.parse_args(arguments)
    pipeline = Pipeline(find_models(options.weights), defaults=DEFAULTS)
    settings = Settings(fps=options.fps, steps=options.steps, guidance_scale=options.guidance, seed=options.seed)
    if options.sheet is not None:
        scenes = held_out_scenes(6, seed=2)
        write_image(keyframe_sheet(pipeline, scenes, settings), options.sheet)
        print("\n".join(scene.caption() for scene in scenes))
        return 0
    start = time.perf_counter()
    rows = evaluate(pipeline, options.captions, options.clips, settings)
    print(
        f"{options.captions} held-out captions, {options.steps} steps, fps {options.fps}, seed {options.seed}; "
        f"{time.perf_counter() - start:.0f} s on {torch.get_num_threads()} threads"
    )
    for row in rows:
        bound = "" if row.threshold is None else f"  at least {row.threshold:g}  {'pass' if row.passed else 'FAIL'}"
        print(f"{row.name:36} {row.value:8.3f}{bound}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
