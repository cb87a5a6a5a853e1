"""Table 3 of the paper at the demo's width: nine decoders over one frozen encoder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..demo import recipe
from ..demo.batches import draw_clip, draw_windows, window_times
from ..demo.evaluate import held_out_scenes
from ..demo.recipe import DECODER_SQUARED
from ..metrics.consistency import pixel_flicker
from ..metrics.fidelity import fidelity_curves
from ..metrics.lpips import load_lpips
from ..models.configs import MOVQ, MoVQConfig
from ..models.movq import MoVQ
from ..stages.decoding import decode
from ..stages.interpolation import SKIP_FRAMES
from ..training.freezing import freeze
from ..training.initial import initialise
from ..training.losses import FrozenEncoder
from . import budgets
from .runs import ExperimentRun, Job, Numbers, Training, mean_of, shipped

GROUP = "decoders"
TRUTH = "true clips"
_CONV1D, _CONV3D = {"temporal": True, "temporal_kernel_size": (3, 1, 1)}, {"temporal": True}
_ATTENTION = {"temporal_attention_block": True}


@dataclass(frozen=True)
class Row:
    """One row of the paper's table 3.

    Attributes:
        name: temporal layers and what is trained, short enough for a file name.
        layers: the paper's words for the temporal layers.
        trained: "-", "temporal" or "whole".
        flags: fields of ``MoVQConfig``.
        paper: PSNR (dB), SSIM, MSE, LPIPS and millions of parameters, as printed.
    """

    name: str
    layers: str
    trained: str
    flags: Mapping[str, object]
    paper: tuple[float, float, float, float, int]

    def config(self, image: MoVQConfig = MOVQ) -> MoVQConfig:
        """Return this decoder's configuration at the size of an image decoder; default the released size."""
        return replace(image, **self.flags)


ROWS = (
    Row("image", "-", "-", {}, (32.9677, 0.9056, 0.0008, 0.0049, 161)),
    Row("conv1d-temporal", "3x1x1 conv", "temporal", _CONV1D, (32.2544, 0.893, 0.0009, 0.006, 203)),
    Row("conv3d-temporal", "3x3x3 conv", "temporal", _CONV3D, (33.5819, 0.9111, 0.0007, 0.0044, 539)),
    Row("conv1d", "3x1x1 conv", "whole", _CONV1D, (33.5051, 0.9106, 0.0007, 0.0044, 203)),
    Row("conv3d", "3x3x3 conv", "whole", _CONV3D, (33.6342, 0.9123, 0.0007, 0.0043, 539)),
    Row("conv1d-attn", "3x1x1 conv + attn", "whole", _CONV1D | _ATTENTION, (33.7343, 0.9129, 0.0007, 0.0043, 220)),
    Row("conv3d-attn", "3x3x3 conv + attn", "whole", _CONV3D | _ATTENTION, (33.8376, 0.9146, 0.0006, 0.0041, 556)),
    Row(
        "resnet-attn", "ResNet block + attn", "whole", {"temporal_blocks": True} | _ATTENTION,
        (33.7024, 0.9121, 0.0007, 0.0043, 220),
    ),
    Row("inflated", "2D->3D conv", "whole", {"build_3D_decoder": True}, (33.7321, 0.9134, 0.0007, 0.0043, 419)),
)  # fmt: skip


def start_of(row: Row) -> MoVQ:
    """Return a row's autoencoder at demo width, its pictures still those of the shipped image decoder.

    What mixes time starts without effect: branches that add nothing, convolutions over time that copy their frame,
    and 3x3x3 in place of 3x3 as the 3x3 in the middle frame.
    """
    image = shipped("vae/fusionframes_demo_movq")
    movq = initialise(MoVQ(row.config(recipe.MOVQ)))
    own = movq.state_dict()
    weights = {key: _inflate(value, own[key]) for key, value in image.state_dict().items()}
    movq.load_state_dict(weights, strict=False)
    return movq


def _inflate(weight: Tensor, like: Tensor) -> Tensor:
    if weight.shape == like.shape:
        return weight
    out = torch.zeros_like(like)
    out[:, :, like.shape[2] // 2] = weight
    return out


def jobs(run: ExperimentRun) -> list[Job]:
    """Return the jobs: true clips, the image decoder as it is, every other row under every seed."""
    budget = budgets.DECODERS.scaled(run.share)
    settings = {"evaluated": budget.evaluated, "lpips": None if run.lpips is None else run.lpips.name}
    image, *rows = ROWS
    out = [
        Job(GROUP, TRUTH, 0, lambda _: mean_of(map(_flicker, held_out_windows(budget.evaluated))), settings),
        Job(GROUP, image.name, 0, lambda _: measure(start_of(image).eval(), budget.evaluated, run), settings),
    ]
    for seed in run.seeds_of(budgets.DECODER_SEEDS):
        for row in rows:
            training = Training(
                partial(objective_of, row),
                lambda _: partial(draw_windows, frames=budgets.DECODER_FRAMES),
                budget,
                {"squared": DECODER_SQUARED, "frames": budgets.DECODER_FRAMES},
            )
            work = partial(_measure_trained, run, budget.evaluated)
            out.append(Job(GROUP, row.name, seed, work, settings, training))
    return out


def objective_of(row: Row) -> FrozenEncoder:
    """Return the training objective of a row: what it trains is free, the encoder is not."""
    objective = FrozenEncoder(start_of(row), DECODER_SQUARED)
    freeze(objective, lambda name: row.trained == "whole" or "temporal" in name)
    return objective


def _measure_trained(run: ExperimentRun, clips: int, objective: FrozenEncoder) -> Numbers:
    return measure(objective.movq, clips, run)


def _flicker(clip: Tensor) -> Numbers:
    return {"flicker": pixel_flicker(clip).mean().item()}


def held_out_windows(count: int) -> list[Tensor]:
    """Return clips ``[8, 3, 64, 64]`` in 0..1 of scenes never trained, at both spacings in turn."""
    clips = []
    for i, scene in enumerate(held_out_scenes(count, seed=3)):
        rng = np.random.default_rng([3, i])
        times = window_times(rng, SKIP_FRAMES[i % 2])
        start = rng.integers(len(times) - budgets.DECODER_FRAMES + 1)
        clips.append((draw_clip(rng, scene, times[start : start + budgets.DECODER_FRAMES]) + 1) / 2)
    return clips


@torch.inference_mode()
def measure(movq: MoVQ, clips: int, run: ExperimentRun) -> Numbers:
    """Return PSNR (dB), SSIM, MSE, flicker and, with a network, LPIPS of held-out clips, means over frames."""
    distance = None if run.lpips is None else load_lpips(run.lpips)
    rows = []
    for clip in held_out_windows(clips):
        frames = decode(movq, movq.encode(clip * 2 - 1), chunk=len(clip))
        row = {name: curve.mean().item() for name, curve in fidelity_curves(clip, frames).items()} | _flicker(frames)
        if distance is not None:
            row["LPIPS"] = distance(clip, frames).mean().item()
        rows.append(row)
    return mean_of(rows)
