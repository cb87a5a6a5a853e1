"""Figure 3 of the paper at demo scale: four ways to mix time over one frozen spatial network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.conversion import write_checkpoint
from ..checkpoints.detection import NULL_KEY, Kind
from ..checkpoints.folder import TOKENIZER_NAME
from ..checkpoints.loading import Loaded, load
from ..demo import WEIGHTS, batches, recipe
from ..demo.batches import LatentClips
from ..demo.evaluate import held_out_scenes, sample_clips, true_clips
from ..demo.lessons import Lessons, draw_keyframes_and_lessons, make_lessons
from ..demo.model import demo_pipeline
from ..demo.start.noise_path import hold_noise
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
from ..training.run_folder import TrainRun
from . import budgets
from .runs import ExperimentRun, Job, Numbers, Training, mean_of, pipeline_with, seeded, shipped

GROUP = "variants"
SHIPPED, TRUTH = "demo weights", "true clips"
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

    Only the temporal parts train, as in the paper; they start without effect, and no variant is given the codes of
    motion that the demo's own training starts with, as there is a place for them in blocks only. The channels on which
    the noise passes are left alone in every variant.
    """
    keyframes = _shipped_keyframes()
    unet = initialise(KeyframeUNet(replace(recipe.KEYFRAMES, temporal_variant=variant)))
    spatial = {key: value for key, value in keyframes.network.state_dict().items() if not is_temporal(key)}
    unet.load_state_dict(spatial, strict=False)
    objective = KeyframeNoise(shipped("text_encoders/fusionframes_demo_text_encoder"), keyframes.projection, unet)
    with torch.no_grad():
        objective.null_embedding.copy_(keyframes.null_embedding)
    hold_noise(unet)
    freeze(objective, is_temporal)
    return objective


def _shipped_keyframes() -> Loaded:
    return load(WEIGHTS / "diffusion_models" / "fusionframes_demo_keyframes.safetensors", dtype=torch.float32)


def jobs(run: ExperimentRun) -> list[Job]:
    """Return the jobs: true clips, the shipped weights as they are, and every variant under every seed."""
    budget = budgets.VARIANTS.scaled(run.share)
    settings = {**budgets.KEYFRAME_SAMPLING, "evaluated": budget.evaluated}
    out = [
        Job(GROUP, TRUTH, 0, lambda _: mean_of(map(_steadiness, true_keyframes(budget.evaluated))), settings),
        Job(GROUP, SHIPPED, 0, lambda _: measure(demo_pipeline(), budget.evaluated), settings),
    ]
    for seed in run.seeds_of(budgets.VARIANT_SEEDS):
        for variant in TEMPORAL_VARIANTS:
            work = partial(_measure_trained, run, f"{GROUP}-{variant}", seed)
            training = Training(
                partial(start_of, variant),
                lambda train_run: partial(_draw, source=_source(train_run, budget)),
                budget,
                {"mix": asdict(budgets.VARIANT_MIX)},
                partial(work, captions=budget.watched_clips),
            )
            out.append(Job(GROUP, variant, seed, partial(work, captions=budget.evaluated), settings, training))
    return out


@dataclass(frozen=True)
class Source:
    """What batches are drawn from."""

    clips: LatentClips
    lessons: Lessons
    tokenizer: Tokenizer


def _source(run: TrainRun, budget: budgets.Budget) -> Source:
    movq = load(WEIGHTS / "vae" / "fusionframes_demo_movq.safetensors", dtype=torch.float32).network
    encode = partial(batches.encode_clips, seed=1, skip_frames=None)
    clips = batches.cached_clips(run, "keyframes", movq, budget.clips, encode)
    return Source(clips, make_lessons(clips, movq), Tokenizer(WEIGHTS / "text_encoders" / TOKENIZER_NAME))


def _draw(rng: np.random.Generator, batch: int, source: Source) -> tuple[Tensor, ...]:
    # No twin is drawn: its share is zero.
    return draw_keyframes_and_lessons(
        rng, batch, source.clips, source.lessons, source.clips, source.tokenizer, budgets.VARIANT_MIX
    )


def _measure_trained(run: ExperimentRun, name: str, seed: int, objective: KeyframeNoise, captions: int) -> Numbers:
    path = run.weights_file(name)
    projection = {f"projections.t5.{k}": v for k, v in objective.text["projection"].state_dict().items()}
    tensors = {**objective.unet.state_dict(), **projection, NULL_KEY: objective.null_embedding.detach()}
    write_checkpoint(path, Kind("keyframe", "1.0", objective.unet.config), tensors, torch.float32)
    return measure(pipeline_with(path), captions, seed)


def measure(pipeline: Pipeline, captions: int, seed: int = 0) -> Numbers:
    """Return the share of right answers per attribute and the temporal consistency for held-out captions."""
    settings = Settings(fps="low", seed=seeded(seed), **budgets.KEYFRAME_SAMPLING)
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
