"""Cached latents and contexts to batches: one bucket at a time, text and first frame dropped at their rates.

B clips, T keyframes, G gaps, L tokens, h and w latent sides, D context width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..models.configs import UNetConfig
from ..sampling.levels import trained_levels
from ..sampling.samplers import add_noise
from ..sampling.schedule import alphas_cumprod_v11
from ..stages.interpolation import SKIP_FRAMES
from .noise_levels import draw_normal, draw_trained_levels, noise_levels

CAPTION_DROPOUT = 0.1
FRAME_DROPOUT = 0.1
# Noise on what a network is shown (paper section 4.3: up to 250 steps; the share of clean clips is ours).
MAX_NOISE_LEVEL = 250
CLEAN_SHARE = 0.4
# Frames of an interpolation window: four gaps.
GAP_WINDOW = 17


@dataclass(frozen=True)
class Sample:
    """One clip as it is cached.

    Attributes:
        path: file of latents, see ``cache_latents``.
        context: ``[tokens, D]``.
        motion_score: 1 .. 100.
        size: latent height and width.
        windows: rate to windows in the file.
    """

    path: Path
    context: Tensor
    motion_score: int
    size: tuple[int, int]
    windows: Mapping[str, int]

    @classmethod
    def of(cls, path: Path, context: Tensor, motion_score: int) -> "Sample":
        """Look into a file of latents without reading it."""
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
        size = next(iter(shapes.values()))[-2:]
        return cls(path, context, motion_score, tuple(size), {key: shape[0] for key, shape in shapes.items()})

    def read(self, rate: str, window: int) -> Tensor:
        """Return ``[F, 4, h, w]`` float32 of one window."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(rate)[window : window + 1][0].float()


class Batches:
    """Draws batches for ``KeyframeTuning`` or ``GapTuning``.

    Args:
        samples: the clips to learn.
        prior: clips that half of the rows show instead, so that what is known is kept; may be empty.
        config: of the U-Net.
    """

    def __init__(self, samples: Sequence[Sample], prior: Sequence[Sample], config: UNetConfig) -> None:
        self.config = config
        is_v = config.stage == "interpolation"
        self._levels = trained_levels(config.family, config.timestep_offset, to_the_end=is_v)
        self._sets = [_by_size(part) for part in (samples, prior) if part]

    def __call__(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, ...]:
        """Draw a batch: all of its clips have one size, a size as often as clips have it."""
        first = int(rng.integers(len(self._sets)))
        sets = self._sets[first:] + self._sets[:first]
        sizes = [size for size, bucket in sets[0].items() for _ in bucket]
        size = sizes[int(rng.integers(len(sizes)))]
        # Rows in turn, so that no step moves towards the one and away from the other where both have that size.
        buckets = [buckets[size] for buckets in sets if size in buckets]
        turns = [buckets[i % len(buckets)] for i in range(batch)]
        picked = [bucket[int(rng.integers(len(bucket)))] for bucket in turns]
        return (self._keyframes if self.config.stage == "keyframe" else self._gaps)(rng, picked)

    def _keyframes(self, rng: np.random.Generator, picked: Sequence[Sample]) -> tuple[Tensor, ...]:
        latents = torch.stack([_window(rng, sample, "keyframes") for sample in picked])
        text = (*pad_contexts([sample.context for sample in picked]), _kept(rng, len(picked), CAPTION_DROPOUT))
        batch = latents, draw_normal(rng, latents), *text, *draw_trained_levels(rng, len(picked), self._levels)
        if self.config.family == "1.0":
            return batch
        return *batch, *_first_frames(rng, latents, [sample.motion_score for sample in picked])

    def _gaps(self, rng: np.random.Generator, picked: Sequence[Sample]) -> tuple[Tensor, ...]:
        skips = [SKIP_FRAMES[rng.integers(len(SKIP_FRAMES))] for _ in picked]
        windows = torch.stack([_window(rng, s, f"skip_{skip}") for s, skip in zip(picked, skips, strict=True)])
        inner = gap_frames(windows)
        keyframes, level = perturb(rng, windows[:, ::4])
        text = pad_contexts([sample.context for sample in picked])
        keep = _kept(rng, len(picked), FRAME_DROPOUT)
        levels = draw_trained_levels(rng, len(picked), self._levels)
        return keyframes, inner, draw_normal(rng, inner), *text, keep, torch.tensor(skips), level, *levels


def pad_contexts(contexts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack contexts ``[tokens, D]``: ``[B, L, D]``, mask ``[B, L]``, lengths ``[B]``; a zero token ends each."""
    length = max(map(len, contexts)) + 1
    out = contexts[0].new_zeros(len(contexts), length, contexts[0].shape[1], dtype=torch.float32)
    mask = torch.zeros(len(contexts), length, dtype=torch.long)
    for i, context in enumerate(contexts):
        out[i, : len(context)] = context
        mask[i, : len(context)] = 1
    return out, mask, mask.sum(dim=1) + 1


def gap_frames(windows: Tensor) -> Tensor:
    """Return the frames between every fourth of ``[B, 4G + 1, 4, h, w]``: ``[B, G, 12, h, w]``."""
    gaps = windows.shape[1] // 4
    return torch.stack([windows[:, i::4][:, :gaps] for i in (1, 2, 3)], dim=2).flatten(2, 3)


def perturb(rng: np.random.Generator, keyframes: Tensor) -> tuple[Tensor, Tensor]:
    """Return keyframes ``[B, G + 1, 4, h, w]`` under noise of 0 .. 250 diffusion steps, and the steps ``[B]``."""
    batch = len(keyframes)
    level = np.where(rng.random(batch) < CLEAN_SHARE, 0, rng.integers(MAX_NOISE_LEVEL + 1, size=batch))
    bars = noise_levels(1000)[1].flip(0)[torch.from_numpy(np.maximum(level - 1, 0))]
    bars = torch.where(torch.from_numpy(level) > 0, bars, 1.0)[:, None, None, None, None]
    return bars.sqrt() * keyframes + (1 - bars).sqrt() * draw_normal(rng, keyframes), torch.from_numpy(level)


def _by_size(samples: Sequence[Sample]) -> dict[tuple[int, int], list[Sample]]:
    buckets: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        buckets.setdefault(sample.size, []).append(sample)
    return buckets


def _window(rng: np.random.Generator, sample: Sample, rate: str) -> Tensor:
    return sample.read(rate, int(rng.integers(sample.windows[rate])))


def _kept(rng: np.random.Generator, batch: int, dropout: float) -> Tensor:
    return torch.from_numpy((rng.random(batch) >= dropout).astype(np.float32))


def _first_frames(rng: np.random.Generator, latents: Tensor, scores: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return conditions ``[B, T, 5, h, w]`` of noisy first frames and their mask, noise levels and motion scores."""
    bars = alphas_cumprod_v11()
    condition = torch.zeros_like(latents[:, :, :1]).repeat(1, 1, latents.shape[2] + 1, 1, 1)
    levels, keep = rng.integers(MAX_NOISE_LEVEL + 1, size=len(latents)), _kept(rng, len(latents), FRAME_DROPOUT)
    for i, level in enumerate(levels):
        if keep[i]:
            frame = latents[i, 0]
            condition[i, 0, :-1] = add_noise(frame, draw_normal(rng, frame), bars, int(level))
            condition[i, 0, -1] = 1
    return condition, torch.from_numpy(levels), torch.tensor(scores)
