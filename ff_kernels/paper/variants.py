"""Figure 3 of the paper at demo scale: four ways to mix time over one frozen spatial network."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..checkpoints.conversion import write_checkpoint
from ..checkpoints.detection import NULL_KEY, Kind
from ..checkpoints.folder import TOKENIZER_NAME
from ..checkpoints.loading import Loaded, load
from ..demo import WEIGHTS, batches, recipe
from ..demo.evaluate import held_out_scenes, sample_clips, true_clips
from ..demo.model import demo_pipeline
from ..demo.world.measure import measure_scene, score
from ..demo.world.scenes import KEYFRAMES
from ..metrics.consistency import NEIGHBOUR, PIXEL_FLICKER, WARPING, temporal_curves
from ..models.configs import TEMPORAL_VARIANTS
from ..models.keyframe_unet import KeyframeUNet
from ..models.temporal_blocks import is_temporal
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import Settings
from ..stages.tokenizer import Tokenizer
from ..training.freezing import freeze
from ..training.initial import initialise
from ..training.losses import KeyframeNoise
from . import budgets
from .runs import ExperimentRun, Job, Numbers, mean_of, pipeline_with, shipped

GROUP = "variants"
SHIPPED, TRUTH = "demo weights then", "true clips"
CONSISTENCY = {"warping": WARPING, "neighbours": NEIGHBOUR, "flicker": PIXEL_FLICKER}
# IS, FVD and CLIPSIM of the paper's table 1 after 100,000 steps.
PAPER: Mapping[str, tuple[float, float, float]] = {
    "Conv1dAttn1dLayers": (19.663, 659.612, 0.2827),
    "Conv1dAttn1dBlocks": (23.063, 545.184, 0.2955),
    "Conv3dAttn1dBlocks": (22.899, 594.919, 0.2953),
    "Conv1dAttn3dBlocks": (23.381, 573.569, 0.2956),
}


def start_of(variant: str) -> KeyframeNoise:
    """Return the training objective of a variant: shipped text encoder and spatial weights, fresh temporal parts.

    Only the temporal parts train, as in the paper; they start without effect.
    """
    keyframes = _shipped_keyframes()
    unet = initialise(KeyframeUNet(replace(recipe.KEYFRAMES, temporal_variant=variant)))
    spatial = {key: value for key, value in keyframes.network.state_dict().items() if not is_temporal(key)}
    unet.load_state_dict(spatial, strict=False)
    objective = KeyframeNoise(shipped("text_encoders/fusionframes_demo_text_encoder"), keyframes.projection, unet)
    with torch.no_grad():
        objective.null_embedding.copy_(keyframes.null_embedding)
    freeze(objective, is_temporal)
    return objective


def _shipped_keyframes() -> Loaded:
    return load(WEIGHTS / "diffusion_models" / "fusionframes_demo_keyframes.safetensors", dtype=torch.float32)


def jobs(run: ExperimentRun) -> list[Job]:
    """Return the runs: true clips, the shipped weights as they are, and every variant under every seed."""
    budget = budgets.VARIANTS.scaled(run.share)
    settings = {"budget": budget.to_dict(), "sampling_steps": budgets.SAMPLING_STEPS}
    out = [
        Job(TRUTH, 0, lambda: mean_of(_steadiness(clip) for clip in true_keyframes(budget.evaluated)), settings),
        Job(SHIPPED, 0, lambda: measure(demo_pipeline(), budget.evaluated), settings),
    ]
    for variant in TEMPORAL_VARIANTS:
        out += [Job(variant, seed, partial(_work, run, variant, seed, budget), settings) for seed in run.seeds]
    return out


def _work(run: ExperimentRun, variant: str, seed: int, budget: budgets.Budget) -> Numbers:
    torch.manual_seed(seed)
    objective = start_of(variant)
    movq = load(WEIGHTS / "vae" / "fusionframes_demo_movq.safetensors", dtype=torch.float32).network
    encode = partial(batches.encode_clips, seed=1, skip_frames=None)
    clips = batches.cached_clips(run.train_run(GROUP, seed), "keyframes", movq, budget.clips, encode)
    tokenizer = Tokenizer(WEIGHTS / "text_encoders" / TOKENIZER_NAME)
    draw = partial(batches.draw_keyframes, clips=clips, tokenizer=tokenizer)
    run.train(GROUP, variant, seed, objective, draw, budget)
    path = run.weights_file(GROUP, variant, seed)
    projection = {f"projections.t5.{k}": v for k, v in objective.text["projection"].state_dict().items()}
    tensors = {**objective.unet.state_dict(), **projection, NULL_KEY: objective.null_embedding.detach()}
    write_checkpoint(path, Kind("keyframe", "1.0", objective.unet.config), tensors, torch.float32)
    return measure(pipeline_with(path), budget.evaluated, seed)


def measure(pipeline: Pipeline, captions: int, seed: int = 0) -> Numbers:
    """Return the share of right answers per attribute and the temporal consistency for held-out captions."""
    settings = Settings(fps="low", steps=budgets.SAMPLING_STEPS, seed=1000 * seed)
    rows = []
    for scene, frames in sample_clips(pipeline, held_out_scenes(captions, seed=4), settings):
        right = {name: float(value) for name, value in score(scene, measure_scene(frames)).items()}
        rows.append(right | _steadiness(frames))
    return mean_of(rows)


def _steadiness(frames: Tensor) -> Numbers:
    curves = temporal_curves(frames.contiguous())
    return {key: curves[name].mean().item() for key, name in CONSISTENCY.items()}


def true_keyframes(count: int) -> list[Tensor]:
    """Return true keyframes ``[5, 3, 64, 64]`` in 0..1 of the captions that the variants are asked for."""
    return true_clips(count, KEYFRAMES, seed=4)
