"""What the stages of a run need beside their weights, and in how small a room MoVQ makes frames."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from ..checkpoints.detection import Kind
from ..checkpoints.folding import Parity, Target
from ..checkpoints.loading import bare_network
from ..errors import DeviceError
from ..models.configs import MoVQConfig, TextConfig
from ..runtime.budget import IMAGE_DECODE, VIDEO_DECODE, movq_bytes, step_bytes, text_bytes
from ..runtime.devices import computes_in, held_itemsize, quick_dtypes
from ..runtime.plan import Budget, least_of, size_of
from ..stages.decoding import frames_at_once
from ..stages.releases import Release
from ..stages.tokenizer import MAX_TOKENS
from .settings import Settings


@dataclass(frozen=True)
class Need:
    """What a run of a network needs beside its weights, in bytes; see ``plan_network``."""

    stacked: int
    single: int
    tables: int = 0
    may_stack: bool = True


@dataclass(frozen=True)
class Batch:
    """What a U-Net runs on.

    Attributes:
        clips: videos made together.
        branches: of the guidance.
        samples: frames or gaps of all clips and branches.
        size: latent height and width.
        steps: of the run.
    """

    clips: int
    branches: int
    samples: int
    size: tuple[int, int]
    steps: int


def keyframe_batch(settings: Settings, release: Release, clips: int, size: tuple[int, int]) -> Batch:
    """Return what the keyframe network runs on."""
    branches = 3 if release.reads_image else 2
    steps = settings.steps or release.keyframe.steps
    return Batch(clips, branches, branches * clips * settings.keyframes, size, steps)


def interpolation_batch(
    settings: Settings, release: Release, clips: int, gaps: int, per_gap: int, size: tuple[int, int]
) -> Batch:
    """Return what the interpolation runs on: ``gaps`` of each clip, ``per_gap`` samples each."""
    steps = settings.steps if release.shares_steps else None
    return Batch(clips, 2, 2 * clips * gaps * per_gap, size, steps or release.interpolation.steps)


def unet_need(unet: nn.Module, batch: Batch, target: Target, is_stacked: bool | None) -> Need:
    """Return what a U-Net needs beside its weights.

    Args:
        unet: the network.
        batch: what it runs on.
        target: where and in which dtype it computes.
        is_stacked: True for all branches in one batch, False for one at a time, None where the budget decides.
    """
    channels, samples, each = unet.config.model_channels, batch.samples, held_itemsize(target.device, target.dtype)
    single = step_bytes(samples // batch.branches, batch.size, channels, each)
    stacked = step_bytes(samples, batch.size, channels, each)
    # The longest prompt there can be, so that a plan does not depend on the prompt.
    tables = unet.table_values(batch.steps, batch.clips * batch.branches, samples, MAX_TOKENS)
    return Need(stacked, stacked if is_stacked else single, tables * target.dtype.itemsize, is_stacked is not False)


def text_need(config: TextConfig, rows: int, dtype: torch.dtype) -> Need:
    """Return what the text encoder needs beside its weights for ``rows`` prompts."""
    needed = text_bytes(rows, MAX_TOKENS, (config.d_model, config.d_ff, config.num_heads), dtype.itemsize)
    return Need(needed, needed)


@dataclass(frozen=True)
class MovqNeed:
    """What a MoVQ does.

    Attributes:
        per_pixel: see ``movq_bytes``.
        frames: that it makes or reads.
        size: height and width in pixels.
        looks_around: whether frames that run together look at each other.
        may_narrow: whether it may compute in 16 bit where that is faster and its first frames tell no difference.
    """

    per_pixel: int
    frames: int
    size: tuple[int, int]
    looks_around: bool = False
    may_narrow: bool = False


def decoding_need(
    config: MoVQConfig, frames: int, size: tuple[int, int], shares_map: bool, may_narrow: bool = False
) -> MovqNeed:
    """Return what decoding ``frames`` of ``size`` pixels needs; ``shares_map`` as in ``decode``."""
    per_pixel = VIDEO_DECODE if config.is_video else IMAGE_DECODE
    return MovqNeed(per_pixel, frames, size, config.is_video or shares_map, may_narrow)


@dataclass(frozen=True)
class MovqPlan:
    """How a MoVQ runs on a device.

    Attributes:
        dtype: in which it computes.
        chunk: frames that run together.
        is_as_released: whether the pictures are those of the release's dtype and chunk.
        weights: bytes.
        activations: bytes of intermediate results.
        peak: bytes expected at the most.
        changes: what differs in the pictures, or nothing.
        tries: 16-bit dtypes, of which the first that passes ``narrow.choose_decoder`` takes the place of ``dtype``.
    """

    dtype: torch.dtype
    chunk: int
    is_as_released: bool
    weights: int
    activations: int
    peak: int
    changes: str = ""
    tries: tuple[torch.dtype, ...] = ()


@lru_cache(maxsize=8)
def movq_values(config: MoVQConfig, parity: Parity, is_folded: bool = False) -> int:
    """Return the weights of a MoVQ as it is loaded: folding makes those of doublings 16 of 9 times as many.

    Args:
        config: of the MoVQ.
        parity: see ``Pipeline``.
        is_folded: whether the layers of its file are folded.
    """
    network = bare_network(Kind("movq", "", config), parity=parity, is_folded=is_folded)
    return sum(value.numel() for value in network.parameters())


def plan_movq(
    config: MoVQConfig, need: MovqNeed, budget: Budget, device: torch.device, dtype: torch.dtype, values: int
) -> MovqPlan:
    """Plan a MoVQ: as released where there is room, then in 16 bit, then in smaller chunks.

    Where it may compute in 16 bit because that is faster, float32 stays beside that to judge it. Frames that do not
    look at each other go in smaller chunks first: their pictures stay the same.

    Args:
        config: of the MoVQ.
        need: what it does.
        budget: what it may use.
        device: where it runs.
        dtype: of the other networks: a processor computes in 16 bit where they do.
        values: how many weights it has, see ``movq_values``.

    Raises:
        DeviceError: if not even one frame in 16 bit fits.
    """
    full = frames_at_once(need.frames, need.size, need.looks_around)
    released = torch.float32
    narrow = _narrow(device, dtype)
    smallest = narrow[-1] if narrow else released
    chunks = range(full, 0, -1)
    if need.looks_around:
        # The chunk stays the release's where nobody asked for less than that takes.
        wanted = [(released, full), *((half, full) for half in narrow)]
        wanted += [(smallest, chunk) for chunk in chunks[1:]]
    else:
        # No smaller ones in the smallest plan: a chunk of small frames needs less than one frame of 256 x 256.
        wanted = [(dtype, chunk) for dtype in (released, *narrow) for chunk in chunks]
    if budget.is_smallest:
        wanted = [(dtype, chunk) for dtype, chunk in wanted if not narrow or dtype is not released]
    tries = quick_dtypes(device) if need.may_narrow and not budget.is_smallest else ()
    tried = [(released, full, tries)] if tries else []
    for chosen, chunk, beside in (*tried, *((*pair, ()) for pair in wanted)):
        weights = values * (chosen.itemsize + max((half.itemsize for half in beside), default=0))
        activations = movq_bytes(need.per_pixel, chunk, need.size, config.ch, _movq_itemsize(device, chosen))
        peak = weights + activations
        if budget.vram is None or peak <= budget.vram:
            changes = [] if chosen is released else ["colours to 16 bit"]
            if need.looks_around and chunk < full:
                changes.append(f"chunks of {chunk} frames, which moves the seams between them")
            return MovqPlan(chosen, chunk, not changes, weights, activations, peak, " and ".join(changes), beside)
    raise DeviceError(
        f"expected a budget of at least {least_of(peak, budget)} on the device for MoVQ at {need.size[1]} x "
        f"{need.size[0]} pixels, got {size_of(budget.given)}: raise it, or ask for a smaller size"
    )


def _movq_itemsize(device: torch.device, dtype: torch.dtype) -> int:
    # Counted on a device whose norms run by their formulas: maps that a kernel never writes are 1.75 times as much.
    return held_itemsize(device, dtype) * (1 if device.type in ("cuda", "cpu") else 2)


def _narrow(device: torch.device, dtype: torch.dtype) -> list[torch.dtype]:
    if device.type == "cpu":
        # Processors without float16 of their own take ten times as long in it as in bfloat16.
        return [] if dtype is torch.float32 else [dtype]
    return [half for half in (torch.float16, torch.bfloat16) if computes_in(device, half)][:1]
