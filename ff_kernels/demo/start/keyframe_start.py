"""The start values of the keyframe network, from a text encoder that already reads captions."""

import numpy as np
import torch
from torch import Tensor, nn

from ...stages.tokenizer import Tokenizer
from ...training.losses import KeyframeNoise
from ...training.noise_levels import noise_levels
from .. import batches
from .motion_codes import directions, write_motion
from .noise_path import carry_noise, gate_estimate

# Standard deviations of the pooled text and, over the steps, of the embedded time: both must be heard in their sum.
TEXT_STD = 0.4
TIME_STD = 0.8
# Captions, each at one step, that the start values are fitted to, and the share that stands for no caption.
_CAPTIONS = 6000
_NULL_SHARE = 0.08
_BATCH = 100


@torch.no_grad()
def start_keyframes(objective: KeyframeNoise, tokenizer: Tokenizer) -> None:
    """Set the start values of a keyframe U-Net whose text encoder, projection and pooling are trained.

    Args:
        objective: what is trained next; its U-Net is changed in place.
        tokenizer: of the text encoder.
    """
    unet = objective.unet
    _level_vectors(objective, tokenizer)
    vectors, moves, shares = caption_vectors(objective, tokenizer, np.random.default_rng(0))
    carry_noise(unet)
    gate_estimate(unet, vectors, shares)
    write_motion(unet, vectors, moves)


@torch.no_grad()
def caption_vectors(
    objective: KeyframeNoise, tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the norms read of random captions at random steps, some of them dropped.

    Returns:
        ``vectors [N, E]`` after SiLU, ``directions [N, 4]`` of the captions and ``sqrt(alpha_bar) [N]`` of the steps.
    """
    steps, bars = noise_levels(50)
    rows = []
    for _ in range(_CAPTIONS // _BATCH):
        scenes = [batches.draw_scene(rng) for _ in range(_BATCH)]
        keep = torch.from_numpy(rng.random(_BATCH) >= _NULL_SHARE)
        picks = torch.from_numpy(rng.integers(len(steps), size=_BATCH))
        ids, mask = batches.tokenize(tokenizer, [scene.caption() for scene in scenes])
        moves = torch.tensor([directions(scene if kept else None) for scene, kept in zip(scenes, keep, strict=True)])
        rows.append((objective.vectors(ids, mask, keep, steps[picks]), moves, bars[picks].sqrt().float()))
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def _level_vectors(objective: KeyframeNoise, tokenizer: Tokenizer) -> None:
    """Bring text and time to their standard deviations by their last layers."""
    unet, rng = objective.unet, np.random.default_rng(0)
    ids, mask = batches.tokenize(tokenizer, [batches.draw_scene(rng).caption() for _ in range(_BATCH)])
    steps = noise_levels(50)[0]
    like = objective.null_embedding
    time = unet.embed(unet.to_time_embed, steps, like)
    _scale(unet.to_time_embed[3], TIME_STD / time.std(dim=0).mean())
    text = objective.pooled(ids, mask, torch.ones(_BATCH, dtype=torch.bool))
    _scale(unet.feature_pooling.attention.output_layer, TEXT_STD / text.std())


def _scale(layer: nn.Linear, factor: Tensor) -> None:
    layer.weight.mul_(factor)
    if layer.bias is not None:
        layer.bias.mul_(factor)
