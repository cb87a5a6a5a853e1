"""The paper's interpolation against Masked Frame Interpolation and against blending, on true keyframes."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from ..bench.gap_costs import count_gaps
from ..checkpoints.conversion import write_checkpoint
from ..checkpoints.detection import NULL_KEY, Kind
from ..checkpoints.loading import load
from ..demo import WEIGHTS, batches, recipe
from ..demo.evaluate import blend, interpolated_clips, true_clips
from ..demo.model import demo_pipeline
from ..demo.world.scenes import FULL_FRAMES, MEDIUM_FRAMES
from ..metrics.fidelity import fidelity_curves
from ..models.interpolation_unet import InterpolationUNet
from ..models.masked_unet import MaskedUNet
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import Settings
from ..stages.interpolation import SKIP_FRAMES
from ..training.initial import initialise
from ..training.losses import GapVelocity, MaskedVelocity
from . import budgets
from .runs import ExperimentRun, Job, Numbers, mean_of, pipeline_with

GROUP = "gaps"
BLENDING, SHIPPED = "linear blending", "demo weights then"
OURS, OURS_EQUAL_TIME, MASKED = "ours", "ours, equal time", "masked"
# IS and FVD of the paper's appendix 10 at 30 frames per second.
PAPER = {MASKED: (23.371, 550.932), OURS: (24.325, 433.054)}
LENGTHS = {MEDIUM_FRAMES: 1, FULL_FRAMES: 2}
TIMED_RUNS = 3


def start_of(name: str) -> GapVelocity | MaskedVelocity:
    """Return the training objective of a row: every weight fresh, by the demo's start values.

    Both networks have the demo interpolation's level, width, attention and conditions; they differ in what a sample
    is and in how time is mixed. The paper starts both from the same picture model, of which the demo has none.
    """
    if name == MASKED:
        return MaskedVelocity(initialise(MaskedUNet(recipe.MASKED)))
    return GapVelocity(initialise(InterpolationUNet(recipe.INTERPOLATION)))


def jobs(run: ExperimentRun) -> list[Job]:
    """Return the runs: blending and the shipped interpolation as they are, every network under every seed."""
    budget = budgets.GAPS.scaled(run.share)
    settings = {
        "budget": budget.to_dict(),
        "sampling_steps": budgets.SAMPLING_STEPS,
        "time_factor": budgets.TIME_FACTOR,
    }
    out = [
        Job(BLENDING, 0, partial(_measure_blending, budget), settings),
        Job(SHIPPED, 0, lambda: measure(demo_pipeline(), budget), settings),
    ]
    for name in (OURS, OURS_EQUAL_TIME, MASKED):
        factor = budgets.TIME_FACTOR if name == OURS_EQUAL_TIME else 1
        longer = replace(budget, train=replace(budget.train, steps=budget.train.steps * factor))
        out += [Job(name, seed, partial(_work, run, name, seed, longer), settings) for seed in run.seeds]
    return out


def _work(run: ExperimentRun, name: str, seed: int, budget: budgets.Budget) -> Numbers:
    torch.manual_seed(seed)
    objective = start_of(name)
    movq = load(WEIGHTS / "vae" / "fusionframes_demo_movq.safetensors", dtype=torch.float32).network
    clips = {
        skip: batches.cached_clips(
            run.train_run(GROUP, seed),
            f"skip_{skip}",
            movq,
            budget.clips,
            partial(batches.encode_clips, seed=2 + skip, skip_frames=skip),
        )
        for skip in SKIP_FRAMES
    }
    draw = partial(batches.draw_groups if name == MASKED else batches.draw_gaps, clips=clips)
    run.train(GROUP, name.replace(", ", "-").replace(" ", "-"), seed, objective, draw, budget)
    path = run.weights_file(GROUP, name.replace(", ", "-").replace(" ", "-"), seed)
    config = objective.unet.config
    tensors = {**objective.unet.state_dict(), NULL_KEY: objective.null_embedding.detach()}
    write_checkpoint(path, Kind(config.stage, config.family, config), tensors, torch.float32)
    return measure(pipeline_with(path), budget, seed)


def measure(pipeline: Pipeline, budget: budgets.Budget, seed: int = 0) -> Numbers:
    """Return PSNR (dB), SSIM and MSE of the new frames that a pipeline's interpolation makes of true keyframes."""
    settings = Settings(fps="low", steps=budgets.SAMPLING_STEPS, seed=1000 * seed)
    numbers: Numbers = {}
    for frames, count in _clip_counts(budget):
        pairs = interpolated_clips(pipeline, true_clips(count, frames, seed=5), LENGTHS[frames], settings)
        numbers |= _fidelity(((clip, made) for clip, made, _ in pairs), frames)
    return numbers


def _measure_blending(budget: budgets.Budget) -> Numbers:
    numbers: Numbers = {}
    for frames, count in _clip_counts(budget):
        spacing = 4 ** LENGTHS[frames]
        clips = true_clips(count, frames, seed=5)
        numbers |= _fidelity(((clip, blend(clip[::spacing], spacing)) for clip in clips), frames)
    return numbers


def _clip_counts(budget: budgets.Budget) -> tuple[tuple[int, int], ...]:
    return (MEDIUM_FRAMES, budget.evaluated), (FULL_FRAMES, budget.long_clips)


def _fidelity(pairs: Iterator[tuple[Tensor, Tensor]], frames: int) -> Numbers:
    """Return means over the new frames of all clips; the frames given are left out."""
    new = torch.arange(frames) % 4 ** LENGTHS[frames] != 0
    rows = []
    for truth, made in pairs:
        curves = fidelity_curves(truth[new], made[new])
        rows.append({f"{name} {frames}": curve.mean().item() for name, curve in curves.items()})
    return mean_of(rows)


def count_costs() -> dict[str, dict[str, int]]:
    """Return what both networks need at the released sizes, see ``bench.gap_costs``."""
    return {name: asdict(cost) for name, cost in count_gaps().items()}


def time_both(run: ExperimentRun) -> dict[str, float]:
    """Return the median seconds of each network from 5 keyframes to 65 frames of latents, demo scale, 20 steps."""
    clip = true_clips(1, FULL_FRAMES, seed=5)[0]
    out = {}
    for name in (OURS, MASKED):
        pipeline = pipeline_with(run.weights_file(GROUP, name, run.seeds[0]))
        settings = pipeline.resolve(Settings(fps="low", steps=budgets.SAMPLING_STEPS))
        with torch.inference_mode():
            keyframes = pipeline.network("movq").network.encode(clip[::16] * 2 - 1)[None]
            taken = []
            for _ in range(TIMED_RUNS):
                start = time.perf_counter()
                pipeline.interpolate(keyframes, settings, passes=2)
                taken.append(time.perf_counter() - start)
        out[name] = statistics.median(taken)
    return out
