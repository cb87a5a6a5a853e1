"""Memory of fine-tuning, counted on tensors without contents: one forward and backward pass under the recorder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.detection import Kind
from ..checkpoints.loading import build_network
from ..models.configs import UNetConfig
from ..models.temporal_blocks import is_temporal
from ..models.unet import UNet
from ..training.batches import GAP_WINDOW
from ..training.finetune import Job
from ..training.freezing import freeze
from ..training.lora import attach_lora
from ..training.objectives import checkpoint_blocks
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
    with torch.enable_grad():
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
        activations = _activations(unet, tuning, size, batch)
    # The pass leaves gradients in the dtype of the computation; they are counted among what is trained.
    return Memory(frozen - parked, parked, trained * _BYTES_PER_TRAINED, activations)


def _activations(unet: UNet, tuning: Tuning, size: tuple[int, int], batch: int) -> int:
    """Return the most bytes alive while loss and gradients of a batch are worked out."""
    config, dtype = unet.config, next(unet.parameters()).dtype
    # Which tokens are valid decides shapes, so that the mask has contents.
    told = torch.zeros(batch, _TOKENS, config.context_dim, dtype=dtype, device="meta"), torch.ones(batch, _TOKENS)
    steps, numbers = torch.zeros(1, batch), torch.zeros(batch)
    with torch.set_grad_enabled(tuning.what == "temporal"):
        if config.stage == "keyframe":
            frames, options = config.num_frames, {"positions": torch.zeros(config.num_frames)}
            if config.family == "1.1":
                options |= {"noise_level": numbers, "motion_score": numbers}
            conditions = unet.prepare(*told, steps, keyframes=frames, **options)
        else:
            frames = (GAP_WINDOW - 1) // 4
            conditions = unet.prepare(*told, steps, num_gaps=frames, skip_frames=numbers, noise_level=numbers)
    x = torch.zeros(batch * frames, config.num_channels, *size, dtype=dtype, device="meta")
    x = x.to(memory_format=torch.channels_last)

    @torch.enable_grad()
    def step() -> None:
        with _fused():
            unet(x, conditions).float().square().mean().backward()

    return record(step, unet, fuses_attention=False).peak_bytes


class _FusedAttention(torch.autograd.Function):
    """What fused kernels keep for the backward pass: inputs, result and a number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def _fused() -> Iterator[None]:
    """Put ``_FusedAttention`` in the place of what tensors without contents fall back to.

    A mode of torch would not do: it is off in the backward pass, where blocks run a second time.
    """
    kept = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, **_: _FusedAttention.apply(query, key, value)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = kept


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
