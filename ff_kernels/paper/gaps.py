"""The paper's interpolation against Masked Frame Interpolation and against blending, on true keyframes."""

import math
import statistics
import sys
from collections.abc import Iterable, Mapping
from functools import cache, partial

import torch
from torch import Tensor

from ..bench.gap_costs import GapCost, count_gaps
from ..checkpoints.conversion import write_checkpoint
from ..checkpoints.detection import NULL_KEY, Kind
from ..checkpoints.loading import load
from ..demo import WEIGHTS, batches, recipe
from ..demo.evaluate import blend, interpolated_clips, true_clips
from ..demo.model import demo_pipeline
from ..demo.world.scenes import FULL_FRAMES, MEDIUM_FRAMES
from ..metrics.consistency import warping_error
from ..metrics.fidelity import fidelity_curves
from ..models.interpolation_unet import InterpolationUNet
from ..models.masked_unet import MaskedUNet
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import Settings
from ..stages.interpolation import SKIP_FRAMES
from ..training.initial import initialise
from ..training.losses import GapVelocity, MaskedVelocity
from ..training.run_folder import TrainRun
from . import budgets
from .runs import (
    ExperimentRun,
    Job,
    Numbers,
    Training,
    core_seconds,
    file_stem,
    mean_of,
    pipeline_with,
    seeded,
)

GROUP = "gaps"
BLENDING, SHIPPED, TRUTH = "linear blending", "demo weights", "true clips"
OURS, OURS_EQUAL_TIME, MASKED = "ours", "ours, equal time", "masked"
# IS and FVD of the paper's appendix 10 at 30 frames per second.
PAPER = {MASKED: (23.371, 550.932), OURS: (24.325, 433.054)}
LENGTHS = {MEDIUM_FRAMES: 1, FULL_FRAMES: 2}


def start_of(name: str) -> GapVelocity | MaskedVelocity:
    """Return the training objective of a row: every weight fresh, by the demo's start values.

    Both networks have the demo interpolation's level, width, attention and conditions; they differ in what a sample
    is and in how time is mixed. The paper starts both from the same picture model, of which the demo has none.
    """
    if name == MASKED:
        return MaskedVelocity(initialise(MaskedUNet(recipe.MASKED)))
    return GapVelocity(initialise(InterpolationUNet(recipe.INTERPOLATION)))


def jobs(run: ExperimentRun) -> list[Job]:
    """Return the jobs: blending and the shipped interpolation as they are, every network under every seed."""
    budget = budgets.GAPS.scaled(run.share)
    counts = {MEDIUM_FRAMES: budget.evaluated, FULL_FRAMES: budget.long_clips}
    settings = {**budgets.GAP_SAMPLING, "evaluated": {str(frames): count for frames, count in counts.items()}}
    out = [
        Job(GROUP, TRUTH, 0, lambda _: _measure_truth(counts), settings),
        Job(GROUP, BLENDING, 0, lambda _: _measure_blending(counts), settings),
        Job(GROUP, SHIPPED, 0, lambda _: measure(demo_pipeline(), counts), settings),
    ]
    for seed in run.seeds_of(budgets.GAP_SEEDS):
        for name in (OURS, MASKED, OURS_EQUAL_TIME):
            longer = budget.longer(budgets.TIME_FACTOR if name == OURS_EQUAL_TIME else 1)
            work = partial(_measure_trained, run, file_stem(f"{GROUP}-{name}"), seed)
            draw = batches.draw_groups if name == MASKED else batches.draw_gaps
            training = Training(
                partial(start_of, name),
                lambda train_run, draw=draw: partial(draw, clips=_clips(train_run, budget)),
                longer,
                watch=partial(work, counts={MEDIUM_FRAMES: budget.watched_clips}),
            )
            out.append(Job(GROUP, name, seed, partial(work, counts=counts), settings, training))
    return out


def _clips(run: TrainRun, budget: budgets.Budget) -> dict[int, batches.LatentClips]:
    movq = load(WEIGHTS / "vae" / "fusionframes_demo_movq.safetensors", dtype=torch.float32).network
    return {
        skip: batches.cached_clips(
            run, f"skip_{skip}", movq, budget.clips, partial(batches.encode_clips, seed=2 + skip, skip_frames=skip)
        )
        for skip in SKIP_FRAMES
    }


def _measure_trained(
    run: ExperimentRun, name: str, seed: int, objective: GapVelocity | MaskedVelocity, counts: Mapping[int, int]
) -> Numbers:
    path, config = run.weights_file(name), objective.unet.config
    tensors = {**objective.unet.state_dict(), NULL_KEY: objective.null_embedding.detach()}
    write_checkpoint(path, Kind(config.stage, config.family, config), tensors, torch.float32)
    return measure(pipeline_with(path), counts, seed)


def measure(pipeline: Pipeline, counts: Mapping[int, int], seed: int = 0) -> Numbers:
    """Return the fidelity of the new frames that a pipeline's interpolation makes of true keyframes.

    Args:
        pipeline: with the interpolation to measure.
        counts: length of clips in frames to number of clips.
        seed: of the job.

    Returns:
        For every length PSNR (dB), SSIM, MSE, warping error and the processor seconds of a clip, decoding included.
    """
    settings = Settings(fps="low", seed=seeded(seed), **budgets.GAP_SAMPLING)
    numbers: Numbers = {}
    for frames, count in counts.items():
        clips = true_clips(count, frames, seed=5)
        work = partial(interpolated_clips, pipeline, clips, LENGTHS[frames], settings)
        if not numbers:
            # The first run of all loads the networks.
            list(interpolated_clips(pipeline, clips[:1], LENGTHS[frames], settings))
        pairs, seconds = core_seconds(lambda work=work: list(work()))
        numbers |= _fidelity(((clip, made) for clip, made, _ in pairs), frames)
        numbers[f"seconds {frames}"] = seconds / count
    return numbers


def _measure_blending(counts: Mapping[int, int]) -> Numbers:
    numbers: Numbers = {}
    for frames, count in counts.items():
        spacing = 4 ** LENGTHS[frames]
        clips = true_clips(count, frames, seed=5)
        numbers |= _fidelity(((clip, blend(clip[::spacing], spacing)) for clip in clips), frames)
    return numbers


def _measure_truth(counts: Mapping[int, int]) -> Numbers:
    clips = {frames: true_clips(count, frames, seed=5) for frames, count in counts.items()}
    return {
        f"warping {frames}": statistics.fmean(warping_error(clip).mean().item() for clip in clips[frames])
        for frames in counts
    }


def _fidelity(pairs: Iterable[tuple[Tensor, Tensor]], frames: int) -> Numbers:
    """Return means over the new frames of all clips, the frames given are left out; the warping error is of all.

    PSNR is that of the mean squared error: a frame that blending meets exactly would make a mean of decibels infinite.
    """
    new = torch.arange(frames) % 4 ** LENGTHS[frames] != 0
    rows = []
    for truth, made in pairs:
        curves = fidelity_curves(truth[new], made[new]) | {"warping": warping_error(made)}
        rows.append({f"{name} {frames}": curve.mean().item() for name, curve in curves.items()})
    means = mean_of(rows)
    return means | {f"PSNR {frames}": -10 * math.log10(max(means[f"MSE {frames}"], sys.float_info.min))}


@cache
def count_costs() -> dict[str, GapCost]:
    """Return what both networks need at the released sizes, see ``bench.gap_costs``."""
    return count_gaps()
