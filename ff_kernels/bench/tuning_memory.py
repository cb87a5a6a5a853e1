"""Memory of fine-tuning, counted on tensors without contents: one forward and backward pass under the recorder."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ..checkpoints.detection import Kind
from ..checkpoints.loading import build_network
from ..models.configs import UNetConfig
from ..models.temporal_blocks import is_temporal
from ..models.unet import UNet
from ..training.batches import GAP_WINDOW
from ..training.finetune import Job
from ..training.freezing import freeze
from ..training.lora import attach_lora
from ..training.objectives import GapTuning, KeyframeTuning, checkpoint_blocks
from ..training.tuning import Tuning
from .recorder import record

# What a CUDA context, its libraries and idle pieces of the allocator take; not measured on a card yet.
OVERHEAD_BYTES = 1_000_000_000
# Float32 weights, gradients, two moments and running averages of what trains.
_BYTES_PER_TRAINED = 20
_TOKENS = 77


@dataclass(frozen=True)
class Memory:
    """Bytes on the device while a network is tuned.

    Attributes:
        weights: frozen weights that stay there.
        parked: frozen weights that come for ``prepare`` only, while nothing else of the step is there.
        trained: weights that train, with gradients, optimiser and averages.
        activations: most bytes alive in the forward and backward pass.
    """

    weights: int
    parked: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes needed at the fullest moment, with what the device takes for itself."""
        return self.weights + self.trained + max(self.parked, self.activations) + OVERHEAD_BYTES


@lru_cache(maxsize=32)
def count_memory(
    config: UNetConfig, tuning: Tuning, size: tuple[int, int], batch: int, dtype: torch.dtype, parks: bool
) -> Memory:
    """Return the memory of one tuning step.

    Args:
        config: of the U-Net.
        tuning: what trains.
        size: latent height and width.
        batch: clips at a time.
        dtype: of frozen weights and activations.
        parks: whether what only ``prepare`` reads waits in memory.
    """
    with torch.device("meta"), torch.enable_grad():
        unet = build_network(Kind(config.stage, config.family, config), device="meta", dtype=dtype)
        conditioner = sum(p.nbytes for m in unet.conditioner_modules() for p in m.parameters())
        if tuning.what == "lora":
            attach_lora(unet, tuning.layers, tuning.rank)
        else:
            freeze(unet.requires_grad_(True), is_temporal)
        if tuning.checkpoints:
            checkpoint_blocks(unet)
        trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
        frozen = sum(p.nbytes for p in unet.parameters() if not p.requires_grad)
        parked = conditioner if parks and tuning.what == "lora" else 0
        activations = _activations(unet, config, size, batch)
    # The pass leaves gradients in the dtype of the computation; they are counted among what is trained.
    return Memory(frozen - parked, parked, trained * _BYTES_PER_TRAINED, activations)


def _activations(unet: UNet, config: UNetConfig, size: tuple[int, int], batch: int) -> int:
    null = torch.zeros(config.context_dim)
    text = (torch.zeros(batch, _TOKENS, config.context_dim), torch.ones(batch, _TOKENS), torch.full((batch,), _TOKENS))
    keep, levels = torch.ones(batch), (torch.zeros(batch), torch.full((batch,), 0.5))
    if config.stage == "keyframe":
        latents = torch.zeros(batch, config.num_frames, 4, *size)
        shown = torch.zeros(batch, config.num_frames, 5, *size)
        first = () if config.family == "1.0" else (shown, torch.zeros(batch), torch.zeros(batch))
        objective, inputs = KeyframeTuning(unet, null), (latents, latents, *text, keep, *levels, *first)
    else:
        gaps = (GAP_WINDOW - 1) // 4
        keyframes, inner = torch.zeros(batch, gaps + 1, 4, *size), torch.zeros(batch, gaps, 12, *size)
        skips = torch.ones(batch, dtype=torch.long)
        objective = GapTuning(unet, null)
        inputs = (keyframes, inner, inner, *text, keep, skips, torch.zeros(batch), *levels)
    return record(lambda: objective(*inputs).backward(), unet).peak_bytes


def memory_of(job: Job) -> Memory:
    """Return the memory of a job's step at its largest bucket."""
    config, movq = job.models.require(job.tuning.stage)[1].config, job.models.require("movq")[1].config
    side = max(1, job.tuning.size // movq.factor)
    parks = job.device.type != "cpu" if job.tuning.parks is None else job.tuning.parks
    tuning = replace(job.tuning, prompts=(), sample_every=0, seed=0)
    return count_memory(config, tuning, (side, side), job.config.batch, job.dtype, parks)


def needed_bytes(job: Job) -> int:
    """Return what a job needs on its device."""
    return memory_of(job).total


def memory_row(job: Job) -> str:
    """Return what a job needs on its device in words."""
    memory = memory_of(job)
    parts = {
        "frozen weights": memory.weights, "trained": memory.trained, "activations": memory.activations,
        "conditions": memory.parked,
    }  # fmt: skip
    listed = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in parts.items())
    return f"needs about {memory.total / 1e9:.1f} GB: {listed} and {OVERHEAD_BYTES / 1e9:.0f} for the device (counted)"
