"""MoVQ as core's VAE: frames are the time axis of a video latent, decoded a chunk at a time."""

from typing import Any

import torch
from torch import Tensor, nn

from ...ff_kernels.checkpoints.folding import Target
from ...ff_kernels.checkpoints.reading import METADATA_KEY, pack_metadata
from ...ff_kernels.errors import InputError, ShapeError
from ...ff_kernels.models.movq import MoVQ
from ...ff_kernels.stages.decoding import decode, frames_at_once
from .._compat import (
    CoreVAE,
    check_interrupted,
    mm,
    quiet,
    set_factory,
)
from .files import Weights
from .folded import fill_folded, list_released, make_whole_patcher
from .narrow import NarrowMoVQ

# Values alive at the peak of decoding, counted at the released sizes: of every frame decoded at once about five maps of
# the first width, six where frames look at each other, and of every frame its pixels.
DECODE_MAPS, DECODE_MAPS_VIDEO, DECODE_PIXELS = 5.1, 6.0, 3
FRAMES_PER_ENCODE = 4
# Values alive at the peak of encoding, counted and measured at 192 x 192 for 1 to 64 frames: of every frame encoded at
# once about four maps of the first width and what layers need besides, of every frame its pixels and their copy.
ENCODE_MAPS, ENCODE_EXTRA, ENCODE_PIXELS = 3.9, 38, 6


class VideoMoVQ(nn.Module):
    """MoVQ over ``[B, C, T, H, W]``; frames are folded into the batch, so memory depends on the chunk only."""

    def __init__(self, movq: MoVQ, released: dict[str, Tensor]) -> None:
        super().__init__()
        self.movq, self.released = movq, released

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the weights under the names of the release, with what they do not show: that is what core saves."""
        metadata = pack_metadata({"config": self.movq.config.to_dict()})
        return list_released({**self.released, METADATA_KEY: metadata}, *args, **kwargs)

    def encode(self, pixels: Tensor) -> Tensor:
        """Map pixels ``[B, 3, T, H, W]`` in -1..1 to latents ``[B, 4, T, h, w]``."""
        frames = pixels.transpose(1, 2).flatten(0, 1)
        parts = [self.movq.encode(part) for part in frames.split(FRAMES_PER_ENCODE)]
        return torch.cat(parts).unflatten(0, (pixels.shape[0], -1)).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents ``[B, 4, T, h, w]`` to pixels ``[B, 3, T, H, W]`` in 0..1, in the releases' chunks."""
        if latents.ndim == 4:
            latents = latents[:, :, None]
        if latents.ndim != 5 or latents.shape[1] != self.movq.config.z_channels:
            raise ShapeError(
                f"samples expected a video latent [B, {self.movq.config.z_channels}, T, h, w] of MoVQ, got "
                f"{list(latents.shape)}: decode latents of another model with that model's VAE"
            )
        clips = [
            decode(self.movq, clip.transpose(0, 1), shared_map=self.movq.config.is_video, should_stop=interrupt)
            for clip in latents
        ]
        return torch.stack(clips).transpose(1, 2)


def interrupt(done: int, total: int) -> None:
    """Let core's cancel button act between chunks."""
    check_interrupted()


class MoVQVAE(CoreVAE):
    """MoVQ in every node that takes a VAE."""

    def __init__(self, weights: Weights) -> None:
        # Core leaves its own detection early for an empty state dict, with every attribute set, and complains.
        with quiet("No VAE weights detected"):
            super().__init__(sd={})
        config = weights.kind.config
        factor = config.factor
        self.vae_dtype = torch.float32
        self.working_dtypes = [torch.float32]
        self.device, offload = mm.vae_device(), mm.vae_offload_device()
        self.output_device = mm.intermediate_device()
        # No LoRA is for a MoVQ, so that its layers may always be folded.
        movq = MoVQ(config, device="meta", dtype=self.vae_dtype)
        fill_folded(movq, weights.widened(self.vae_dtype), Target(self.device, self.vae_dtype))
        self.first_stage_model = VideoMoVQ(movq, weights.as_filed())
        self.latent_channels, self.latent_dim = config.z_channels, 3
        self.downscale_ratio = (lambda frames: frames, factor, factor)
        self.upscale_ratio = (lambda frames: frames, factor, factor)
        self.downscale_index_formula = self.upscale_index_formula = (1, factor, factor)
        # The engine's decoder returns finished pixels.
        self.process_output = lambda image: image
        self.memory_used_decode = lambda shape, dtype: self.decode_needs(
            shape[2] if len(shape) == 5 else 1, shape[-2], shape[-1]
        )[1]
        self.memory_used_encode = lambda shape, dtype: self.encode_bytes(
            shape[2] if len(shape) == 5 else shape[0], shape[-2], shape[-1]
        )
        self.patcher = make_whole_patcher(self.first_stage_model, self.device, offload)
        set_factory(self.patcher, _patcher, weights)
        self.narrow = NarrowMoVQ(weights)

    def decode_needs(self, frames: int, height: int, width: int, chunk: int | None = None) -> tuple[int, int]:
        """Return how many of ``frames`` latents ``height`` x ``width`` run together and about what bytes they need.

        Args:
            frames: of the clip.
            height: of the latents.
            width: of the latents.
            chunk: frames decoded at once; default as the releases do.
        """
        config = self.movq.config
        size = height * config.factor, width * config.factor
        at_once = min(frames, chunk or frames_at_once(frames, size, config.is_video))
        maps = (DECODE_MAPS_VIDEO if config.is_video else DECODE_MAPS) * config.ch
        pixels = size[0] * size[1]
        return at_once, int((at_once * maps + frames * DECODE_PIXELS) * pixels) * mm.dtype_size(self.vae_dtype)

    def encode_bytes(self, frames: int, height: int, width: int) -> int:
        """Return an estimate of the bytes that encoding ``frames`` pictures ``height`` x ``width`` pixels needs."""
        at_once = min(frames, FRAMES_PER_ENCODE) * (ENCODE_MAPS * self.movq.config.ch + ENCODE_EXTRA)
        return int((at_once + frames * ENCODE_PIXELS) * height * width) * mm.dtype_size(self.vae_dtype)

    @property
    def movq(self) -> MoVQ:
        """The engine's network."""
        return self.first_stage_model.movq


def movq_of(vae: Any, otherwise: str = "") -> MoVQVAE:
    """Return a VAE that is ours.

    Raises:
        InputError: naming what it is instead, and ``otherwise`` what else could be done.
    """
    if not isinstance(vae, MoVQVAE):
        raise InputError(
            f"vae expected a MoVQ, got {type(vae).__name__}: load one with FusionFrames Load MoVQ{otherwise}"
        )
    return vae


def _patcher(weights: Weights, disable_dynamic: bool = False) -> Any:
    return MoVQVAE(weights).patcher
