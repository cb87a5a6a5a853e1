"""What fewer steps cost: figures of a preset, for the demo with its grader and for any folder of weights without.

No figure stands alone. Captions read back right saturate long before clips lose anything; few steps lose variety first;
and the PSNR of an interpolation rises when its random steps are fewer, because it nears the mean of all that might be
there. Jerk and warping error stand beside those of true clips.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..demo.batches import draw_clip
from ..demo.evaluate import held_out_scenes, interpolation_psnr, sample_clips, true_clips
from ..demo.world.measure import Agreement, compare_clip
from ..demo.world.scenes import FULL_FRAMES, KEYFRAMES, Scene, frame_times
from ..errors import InputError
from ..metrics.consistency import pixel_flicker, warping_error
from ..metrics.fidelity import psnr
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import Settings

# Seeds of the runs lie so far apart: clip i of a batch has the noise of seed + i.
SEED_STRIDE = 1000
PASSES = 2
# Motions along one axis leave the place on the other free; the rest leaves both.
_FREE_AXES = {"left": (1,), "right": (1,), "up": (0,), "down": (0,), "bounces": (0,)}
Report = Callable[[str], None]


@dataclass(frozen=True)
class Extent:
    """How much is measured; the defaults are those of the committed results.

    Attributes:
        captions: held-out captions whose keyframes are graded, 2 or more.
        seeds: runs over all captions, 1 or more; the standard errors are over these.
        videos: captions whose whole clips are measured, of the first run.
        truths: true clips whose keyframes are interpolated.
    """

    captions: int = 64
    seeds: int = 3
    videos: int = 12
    truths: int = 8

    def __post_init__(self) -> None:
        """Refuse an extent that gives no figure."""
        for name, least in (("captions", 2), ("seeds", 1), ("videos", 1), ("truths", 1)):
            if getattr(self, name) < least:
                raise InputError(f"expected {least} or more {name} to measure, got {getattr(self, name)}: raise it")


def spread_px(scenes: Sequence[Scene], clips: Sequence[Agreement]) -> float:
    """Return the standard deviation in pixels of where objects are, over the axes that their captions leave free.

    Clips without an object are left out.
    """
    places: dict[int, list[float]] = {0: [], 1: []}
    for scene, clip in zip(scenes, clips, strict=True):
        for axis in _FREE_AXES.get(scene.motion, (0, 1)) if clip.centre_px is not None else ():
            places[axis].append(clip.centre_px[axis])
    variances = [np.var(values, ddof=1) for values in places.values() if len(values) > 1]
    return math.sqrt(np.mean(variances)) if variances else 0.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of runs and its standard error, 0 for a single run."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def _graded(scenes: Sequence[Scene], runs: Sequence[Sequence[Agreement]]) -> dict[str, float]:
    clips = [clip for run in runs for clip in run]
    spread, error = mean_and_error([spread_px(scenes, run) for run in runs])
    return {
        "all_right": statistics.fmean(clip.right["all"] for clip in clips),
        "shape_iou": statistics.fmean(clip.shape_iou for clip in clips),
        "color_rmse": math.sqrt(statistics.fmean(clip.color_rmse**2 for clip in clips)),
        "spread_px": spread,
        "spread_error_px": error,
    }


def _steadiness(clips: Sequence[Tensor]) -> dict[str, float]:
    """Return jerk and warping error of clips ``[F, 3, H, W]``, both times 1000."""
    return {
        "jerk": 1000 * statistics.fmean(pixel_flicker(clip).mean().item() for clip in clips),
        "warping_error": 1000 * statistics.fmean(warping_error(clip).mean().item() for clip in clips),
    }


def measure_truth(extent: Extent) -> dict[str, float]:
    """Return the figures of clips that the demo's world draws itself: what a perfect model would have."""
    scenes = held_out_scenes(extent.captions)
    runs = []
    for seed in range(extent.seeds):
        rng = np.random.default_rng(seed)
        clips = [(draw_clip(rng, scene, frame_times(KEYFRAMES)) + 1) / 2 for scene in scenes]
        runs.append([compare_clip(clip, scene) for clip, scene in zip(clips, scenes, strict=True)])
    return _graded(scenes, runs) | _steadiness(true_clips(extent.videos, FULL_FRAMES))


def measure_preset(pipeline: Pipeline, preset: str, extent: Extent, report: Report = print) -> dict[str, float]:
    """Return the figures of a preset on the demo; every preset has the same captions and seeds.

    Args:
        pipeline: the demo model.
        preset: a name of ``stages.presets.PRESETS``.
        extent: how much to measure.
        report: told what is being measured.

    Returns:
        ``all_right``, ``shape_iou`` and ``color_rmse`` (0..255) against what was asked, ``spread_px`` with
        ``spread_error_px``, ``jerk`` and ``warping_error`` (times 1000), ``interpolation_db`` beside ``blend_db``.
    """
    scenes, runs = held_out_scenes(extent.captions), []
    for run in range(extent.seeds):
        report(f"{preset}: keyframes, run {run + 1} of {extent.seeds}")
        settings = Settings(fps="low", seed=run * SEED_STRIDE, preset=preset)
        clips = sample_clips(pipeline, scenes, settings)
        runs.append([compare_clip(frames, scene) for scene, frames in clips])
    report(f"{preset}: whole clips")
    settings = Settings(fps="high", preset=preset)
    # Few at a time: a whole clip of the demo is thirteen times its keyframes.
    videos = [frames for _, frames in sample_clips(pipeline, scenes[: extent.videos], settings, batch=4)]
    report(f"{preset}: interpolation")
    truths = true_clips(extent.truths, FULL_FRAMES)
    ours, blend = interpolation_psnr(pipeline, truths, PASSES, replace(settings, fps="low"))
    return _graded(scenes, runs) | _steadiness(videos) | {"interpolation_db": ours, "blend_db": blend}


def measure_against_released(
    pipeline: Pipeline, presets: Sequence[str], prompts: Sequence[str], seeds: int, settings: Settings,
    report: Report = print,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return the figures of presets beside the released run at equal seeds, for weights that nothing can grade.

    Args:
        pipeline: any model.
        presets: names; "released" is always run and measured.
        prompts: what the clips show.
        seeds: runs of each prompt, 2 or more: ``variety`` is how far they lie apart.
        settings: size, frames per second and the like.
        report: told what is being measured.

    Returns:
        Per preset ``psnr_to_released_db``, ``jerk`` and ``warping_error`` (times 1000), ``variety`` (root mean square
        difference of two runs of a prompt, pixels 0..255) with ``variety_error`` over prompts, ``seconds`` per clip.

    Raises:
        InputError: if there are no prompts or fewer than two seeds.
    """
    if not prompts or seeds < 2:
        raise InputError(
            f"expected prompts and two or more seeds, got {len(prompts)} prompts and {seeds}: variety needs two runs"
        )
    names = list(dict.fromkeys(("released", *presets)))
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for prompt in prompts:
        shrunk: dict[str, list[Tensor]] = {name: [] for name in names}
        for seed in range(seeds):
            released = None
            for name in names:
                report(f"{name}: seed {seed}, {prompt}")
                clip = pipeline.generate(prompt, replace(settings, preset=name, seed=seed))
                frames = clip.frames.permute(0, 3, 1, 2)
                released = frames if released is None else released
                figures = {"seconds": sum(clip.seconds.values())}
                figures |= _steadiness([frames]) if len(frames) > 2 else {}
                if name != "released":
                    figures["psnr_to_released_db"] = psnr(released, frames).mean().item()
                for key, value in figures.items():
                    rows[name].setdefault(key, []).append(value)
                shrunk[name].append(torch.nn.functional.adaptive_avg_pool2d(frames, (64, 64)))
        for name in names:
            apart = [255 * (a - b).square().mean().sqrt().item() for a, b in zip(shrunk[name], shrunk[name][1:])]  # noqa: B905
            rows[name].setdefault("variety", []).append(statistics.fmean(apart))
    out = {}
    for name, figures in rows.items():
        out[name] = {key: statistics.fmean(values) for key, values in figures.items()}
        out[name]["variety_error"] = mean_and_error(figures["variety"])[1]
    return out


def time_presets(pipeline: Pipeline, presets: Sequence[str], prompt: str, repeats: int = 3) -> dict[str, float]:
    """Return the median seconds of a whole clip per preset, decoding included; the presets take turns."""
    seconds: dict[str, list[float]] = {preset: [] for preset in presets}
    # Networks are loaded and folded by the first run of all, which is not counted.
    pipeline.generate(prompt, Settings(fps="high", preset=presets[-1]))
    for _ in range(repeats):
        for preset in presets:
            start = time.perf_counter()
            pipeline.generate(prompt, Settings(fps="high", preset=preset))
            seconds[preset].append(time.perf_counter() - start)
    return {preset: statistics.median(values) for preset, values in seconds.items()}
