"""Latents and conditioning as core passes them, checked and turned into the engine's shapes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...ff_kernels.errors import InputError, ShapeError
from ...ff_kernels.models.configs import LatentSpace
from .._compat import LatentFormat

CHANNELS = 4
# Keys that our nodes add to a conditioning.
MARKED = "fusionframes_marked"
FIRST_FRAME = "fusionframes_first_frame"
NOISE_LEVEL = "fusionframes_noise_level"
MOTION_SCORE = "fusionframes_motion_score"
NO_FIRST_FRAME = "fusionframes_without_first_frame"
# Key of a LATENT: interpolation passes that its frames have behind them.
PASSES = "fusionframes_passes"
# Key of a LATENT whose last stage ran by a preset that decodes in 16 bit where that is near enough.
NARROW_DECODER = "fusionframes_narrow_decoder"
IMAGE_KEYS = (FIRST_FRAME, NOISE_LEVEL, MOTION_SCORE)
# Shown in previews where a checkpoint's colours were never measured: three channels as red, green and blue.
FALSE_COLOURS = ((0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5), (0.15, 0.15, 0.15))

Conditioning = list[list[Any]]


class VideoLatents(LatentFormat):
    """Latents ``[B, 4, T, h, w]`` of MoVQ: not scaled, one latent frame per frame."""

    latent_channels = CHANNELS
    latent_dimensions = 3
    temporal_downscale_ratio = 1

    def __init__(self, space: LatentSpace | None = None) -> None:
        space = space or LatentSpace()
        # Core spells it so; the second name is a later one.
        self.spacial_downscale_ratio = self.spatial_downscale_ratio = space.factor
        self.latent_rgb_factors = [list(row) for row in space.rgb_factors or FALSE_COLOURS]
        self.latent_rgb_factors_bias = list(space.rgb_bias or (0.0, 0.0, 0.0))


def latent_frames(latent: Mapping[str, Any], node_input: str) -> Tensor:
    """Return ``[B, T, 4, h, w]`` float32 frames of a LATENT.

    Raises:
        ShapeError: if it is no video latent of four channels.
        InputError: if it holds values that are not numbers.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False) or samples.ndim != 5 or samples.shape[1] != CHANNELS:
        shape = "several latents" if getattr(samples, "is_nested", False) else list(samples.shape)
        raise ShapeError(
            f"{node_input} expected a video latent [B, 4, T, h, w] of MoVQ, got {shape}: connect FusionFrames Empty "
            "Latent, a FusionFrames sampler, or frames encoded with FusionFrames Load MoVQ"
        )
    if not torch.isfinite(samples).all():
        raise InputError(
            f"{node_input} expected numbers, got a latent with NaN or infinite values: run the step that made it "
            "again, in float32 or bfloat16"
        )
    return samples.movedim(1, 2).float()


def as_latent(frames: Tensor, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the LATENT of frames ``[B, T, 4, h, w]``; other entries of ``like`` are kept."""
    kept = {key: value for key, value in (like or {}).items() if key not in ("noise_mask", "downscale_ratio_spacial")}
    return {**kept, "samples": frames.movedim(2, 1).contiguous()}


def with_decoder(latent: Mapping[str, Any], *, is_narrow: bool) -> dict[str, Any]:
    """Return a copy of a LATENT that says whether it may be decoded in 16 bit, whatever the stage before said."""
    kept = {key: value for key, value in latent.items() if key != NARROW_DECODER}
    return {**kept, NARROW_DECODER: True} if is_narrow else kept


def only_entry(conditioning: Conditioning, node_input: str) -> tuple[Tensor, dict[str, Any]]:
    """Return tensor and options of a conditioning with one entry.

    Raises:
        InputError: if it has none or several, which only core's own samplers can mix.
    """
    if len(conditioning) != 1:
        raise InputError(
            f"{node_input} expected one conditioning, got {len(conditioning)} combined ones: use KSampler for combined "
            "prompts"
        )
    tensor, options = conditioning[0]
    return tensor, options


def with_values(conditioning: Conditioning, **values: Any) -> Conditioning:
    """Return a copy of a conditioning with further options on every entry."""
    return [[tensor, {**options, **values}] for tensor, options in conditioning]


def without_values(conditioning: Conditioning, keys: tuple[str, ...]) -> Conditioning:
    """Return a copy of a conditioning without some of its options."""
    return [[t, {k: v for k, v in options.items() if k not in keys}] for t, options in conditioning]
